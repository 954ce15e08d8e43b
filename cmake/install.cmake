# Headers, the CMake package `kvc` and pkg-config files: kvc, and with compiled kernels kvc-compiled.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/kvc)
set(exported kvc)
set(architecture ARCH_INDEPENDENT)
if(KVC_COMPILED)
  list(APPEND exported kvc_kernels)
  set(architecture "")
endif()

install(DIRECTORY include/kvc DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS ${exported} EXPORT kvc ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT kvc NAMESPACE kvc:: FILE kvcTargets.cmake DESTINATION ${package_folder})

configure_package_config_file(cmake/kvcConfig.cmake.in kvcConfig.cmake INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(kvcConfigVersion.cmake COMPATIBILITY SameMinorVersion ${architecture})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/kvcConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/kvcConfigVersion.cmake
        DESTINATION ${package_folder})

# Relative to the file itself, so that an installed tree can be moved.
file(RELATIVE_PATH pkgconfig_to_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
set(pkgconfig_files kvc.pc)
if(KVC_COMPILED)
  list(APPEND pkgconfig_files kvc-compiled.pc)
endif()
foreach(file IN LISTS pkgconfig_files)
  configure_file(cmake/${file}.in ${file} @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${file} DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
