# Installs the library to a prefix of its own, builds the consumer project against it, and runs that; then the programs.
# Usage: cmake -DBUILD_DIR= -DSOURCE_DIR= -DWORK_DIR= -DCOMPILER= -DFLAGS= -P install_test.cmake
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGN}\nended with ${result}:\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${WORK_DIR}/prefix --component development)
file(GLOB_RECURSE headers ${WORK_DIR}/prefix/*.h)
list(LENGTH headers count)
if(NOT count EQUAL 1)
  message(FATAL_ERROR "one header is public, these were installed: ${headers}")
endif()
run(${CMAKE_COMMAND} -G Ninja -S ${SOURCE_DIR}/consumer -B ${WORK_DIR}/build -DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix
  -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_CXX_FLAGS=${FLAGS})
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build)
run(${WORK_DIR}/build/consumer)
message(STATUS "${output}")

# The programs, which run from where they were installed.
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${WORK_DIR}/programs --component runtime)
run(${WORK_DIR}/programs/bin/nqkvd --version)
if(NOT output MATCHES "^nqkvd [0-9]")
  message(FATAL_ERROR "the installed nqkvd says: ${output}")
endif()
run(${WORK_DIR}/programs/bin/nqkv --help)
