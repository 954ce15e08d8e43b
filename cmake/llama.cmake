# llama.cpp, for what uses kvc/llama.hpp: the examples in examples/llama_cpp and their tests. Sets KVC_HAS_LLAMA. Where
# it is not found, or cannot be used, they are not built.
set(KVC_LLAMA ${PROJECT_SOURCE_DIR}/build/llama CACHE PATH
    "The folder that llama.cpp is installed to, with lib/cmake/llama; sh cmake/fetch_llama.sh fills the default")
set(KVC_HAS_LLAMA OFF)
if(CMAKE_CROSSCOMPILING OR KVC_SANITIZER)
  message(STATUS "kvc: without llama.cpp, which is not built for this")
  return()
endif()
find_package(llama QUIET HINTS ${KVC_LLAMA})
if(TARGET llama)
  set(KVC_HAS_LLAMA ON)
  message(STATUS "kvc: with llama.cpp from ${llama_DIR}")
else()
  message(STATUS "kvc: without llama.cpp (sh cmake/fetch_llama.sh builds it; or name its folder with -DKVC_LLAMA=...)")
endif()
