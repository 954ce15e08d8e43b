# kvc::compiled is kvc::kvc with the kernels of every instruction set in a library, not in every translation unit.
add_library(kvc_kernels STATIC ${CMAKE_CURRENT_LIST_DIR}/kernels.cpp)
add_library(kvc::compiled ALIAS kvc_kernels)
set_target_properties(kvc_kernels PROPERTIES EXPORT_NAME compiled POSITION_INDEPENDENT_CODE ON)
target_compile_definitions(kvc_kernels PUBLIC KVC_COMPILED)
target_link_libraries(kvc_kernels PUBLIC kvc)
# Policies that fit matrices have a name where Eigen is found (kvc/named/registry.hpp).
find_package(Eigen3 QUIET NO_MODULE)
if(TARGET Eigen3::Eigen)
  get_target_property(eigen_include Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
  target_include_directories(kvc_kernels SYSTEM PRIVATE ${eigen_include})
endif()
# A project that adds this folder without choosing a build type gets fast kernels nevertheless.
target_compile_options(kvc_kernels PRIVATE $<$<CONFIG:>:-O2>)
if(TARGET kvc_warnings)
  target_compile_options(kvc_kernels PRIVATE $<TARGET_PROPERTY:kvc_warnings,INTERFACE_COMPILE_OPTIONS>)
endif()
