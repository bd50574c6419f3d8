// Small helpers around absl::Status: early returns, and text for messages.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace scion {

// The system's Abseil has a string_view of its own, to which std::string_view does not convert.
inline absl::string_view ToAbsl(std::string_view s) { return absl::string_view(s.data(), s.size()); }

// A name from outside, fit for a message: in quotes, control characters escaped, cut at 160 bytes.
inline std::string Quoted(std::string_view s) {
  constexpr size_t kMaxBytes = 160;
  const bool cut = s.size() > kMaxBytes;
  return absl::StrCat("'", absl::Utf8SafeCEscape(ToAbsl(s.substr(0, kMaxBytes))), cut ? "..." : "", "'");
}

// The same code, the message preceded by "context: ".
inline absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(ToAbsl(context), ": ", status.message()));
}

}  // namespace scion

#define SCION_RETURN_IF_ERROR(expr)                                                     \
  do {                                                                                  \
    if (absl::Status scion_status_ = (expr); !scion_status_.ok()) return scion_status_; \
  } while (false)

#define SCION_CONCAT_INNER_(a, b) a##b
#define SCION_CONCAT_(a, b) SCION_CONCAT_INNER_(a, b)

// SCION_ASSIGN_OR_RETURN(auto x, MakeX()); a type that contains a comma goes in parentheses-free `auto`.
#define SCION_ASSIGN_OR_RETURN(lhs, expr) SCION_ASSIGN_OR_RETURN_(SCION_CONCAT_(scion_statusor_, __LINE__), lhs, expr)
#define SCION_ASSIGN_OR_RETURN_(tmp, lhs, expr) \
  auto tmp = (expr);                            \
  if (!tmp.ok()) return tmp.status();           \
  lhs = *std::move(tmp)
