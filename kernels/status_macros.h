// The two macros that absl::Status code lives by; the Abseil that Debian 12 has does not bring them.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the function when `expression`, an absl::Status, is not OK.
#define NQKV_RETURN_IF_ERROR(expression)                                                   \
  do {                                                                                     \
    if (absl::Status nqkv_status_ = (expression); !nqkv_status_.ok()) return nqkv_status_; \
  } while (false)

#define NQKV_STATUS_CONCAT_INNER_(a, b) a##b
#define NQKV_STATUS_CONCAT_(a, b) NQKV_STATUS_CONCAT_INNER_(a, b)

// Assigns the value of `expression`, an absl::StatusOr, to `target` (which may declare it) or returns its status.
#define NQKV_ASSIGN_OR_RETURN(target, expression) \
  NQKV_ASSIGN_OR_RETURN_(NQKV_STATUS_CONCAT_(nqkv_statusor_, __LINE__), target, expression)
#define NQKV_ASSIGN_OR_RETURN_(statusor, target, expression) \
  auto statusor = (expression);                              \
  if (!statusor.ok()) return std::move(statusor).status();   \
  target = std::move(statusor).value()
