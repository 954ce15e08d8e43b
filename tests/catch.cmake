# Target catch_main: Catch2's header and main(). Variable catch_strictness: what makes an empty test fail.
kvc_find(Catch2 catch2)
set(catch_strictness -w NoAssertions)
if(Catch2_VERSION VERSION_GREATER_EQUAL 3)
  add_library(catch_main INTERFACE)
  target_link_libraries(catch_main INTERFACE Catch2::Catch2WithMain)
  return()
endif()

set(catch_strictness "")  # catch_main.cpp sets it
add_library(catch_main STATIC catch_main.cpp)
target_compile_features(catch_main PUBLIC cxx_std_20)
if(CMAKE_CROSSCOMPILING)
  # The package's include folder is /usr/include, which holds the host's C library too: take the one header alone.
  get_target_property(catch_include Catch2::Catch2 INTERFACE_INCLUDE_DIRECTORIES)
  file(COPY ${catch_include}/catch2/catch.hpp DESTINATION ${CMAKE_CURRENT_BINARY_DIR}/include/catch2)
  target_include_directories(catch_main SYSTEM PUBLIC ${CMAKE_CURRENT_BINARY_DIR}/include)
else()
  target_link_libraries(catch_main PUBLIC Catch2::Catch2)
endif()
