#include "engine/base/json.h"

#include <cmath>
#include <utility>
#include <vector>

#include "engine/base/status.h"

namespace scion {
namespace {

// Builds the document from the parser's events; the parser itself keeps its nesting on the heap, not on the stack.
class DocumentBuilder : public nlohmann::json_sax<Json> {
 public:
  DocumentBuilder(std::string_view what, const JsonLimits& limits) : what_(what), limits_(limits) {}

  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool v) override { return Add(v) != nullptr; }
  bool number_integer(number_integer_t v) override { return Add(v) != nullptr; }
  bool number_unsigned(number_unsigned_t v) override { return Add(v) != nullptr; }
  bool number_float(number_float_t v, const string_t&) override { return Add(v) != nullptr; }
  bool string(string_t& v) override { return Add(std::move(v)) != nullptr; }
  bool binary(binary_t&) override { return Fail(absl::StatusCode::kInvalidArgument, "binary value"); }
  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& key) override {
    Json& object = *open_.back();
    if (object.contains(key))
      return Fail(absl::StatusCode::kInvalidArgument, absl::StrCat("key ", Quoted(key), " twice"));
    member_ = &object[key];
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    const std::string_view text = e.what();
    const size_t end_of_tag = text.find("] ");
    return Fail(
        absl::StatusCode::kInvalidArgument,
        absl::StrCat("byte ", position, ": ",
                     absl::Utf8SafeCEscape(ToAbsl(end_of_tag == text.npos ? text : text.substr(end_of_tag + 2)))));
  }

  absl::Status TakeStatus() { return std::move(status_); }
  Json TakeRoot() { return std::move(root_); }

 private:
  bool Fail(absl::StatusCode code, std::string_view message) {
    if (status_.ok()) status_ = absl::Status(code, absl::StrCat(ToAbsl(what_), ": ", ToAbsl(message)));
    return false;
  }

  Json* Add(Json value) {
    if (++num_values_ > limits_.max_values) {
      Fail(absl::StatusCode::kResourceExhausted, absl::StrCat("more than ", limits_.max_values, " JSON values"));
      return nullptr;
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      return &open_.back()->back();
    }
    *member_ = std::move(value);
    return member_;
  }

  bool Open(Json value) {
    if (static_cast<int>(open_.size()) >= limits_.max_depth) {
      return Fail(absl::StatusCode::kInvalidArgument,
                  absl::StrCat("nested deeper than ", limits_.max_depth, " levels"));
    }
    Json* added = Add(std::move(value));
    if (added == nullptr) return false;
    open_.push_back(added);
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  std::string_view what_;
  const JsonLimits& limits_;
  absl::Status status_;
  Json root_;
  std::vector<Json*> open_;  // stable: only the innermost container grows
  Json* member_ = nullptr;
  int64_t num_values_ = 0;
};

absl::Status WrongType(std::string_view what, std::string_view expected, const Json& value) {
  return absl::InvalidArgumentError(
      absl::StrCat(Quoted(what), " must be ", ToAbsl(expected), ", not ", absl::string_view(value.type_name())));
}

absl::Status Missing(std::string_view key) {
  return absl::InvalidArgumentError(absl::StrCat(Quoted(key), " is missing"));
}

absl::StatusOr<double> AsNumber(const Json& value, std::string_view key) {
  if (!value.is_number()) return WrongType(key, "a number", value);
  const double number = value.get<double>();
  if (!std::isfinite(number)) return absl::InvalidArgumentError(absl::StrCat(Quoted(key), " is not finite"));
  return number;
}

absl::StatusOr<bool> AsBool(const Json& value, std::string_view key) {
  if (!value.is_boolean()) return WrongType(key, "true or false", value);
  return value.get<bool>();
}

absl::StatusOr<std::string> AsString(const Json& value, std::string_view key) {
  if (!value.is_string()) return WrongType(key, "a string", value);
  return value.get_ref<const std::string&>();
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view what, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(ToAbsl(what), ": ", text.size(), " bytes, more than the limit of ", limits.max_bytes));
  }
  // The parser takes a NUL for the end of the text and would never see what follows.
  if (const size_t nul = text.find('\0'); nul != text.npos) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(what), ": byte ", nul, ": NUL"));
  }
  DocumentBuilder builder(what, limits);
  const bool parsed = Json::sax_parse(text.data(), text.data() + text.size(), &builder);
  SCION_RETURN_IF_ERROR(builder.TakeStatus());
  if (!parsed) return absl::InvalidArgumentError(absl::StrCat(ToAbsl(what), ": not JSON"));
  return builder.TakeRoot();
}

const Json* FindMember(const Json& object, std::string_view key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

absl::StatusOr<int64_t> AsInt(const Json& value, std::string_view what, int64_t min, int64_t max) {
  if (!value.is_number_integer()) return WrongType(what, "an integer", value);
  const bool too_large = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (too_large || value.get<int64_t>() < min || value.get<int64_t>() > max) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(what), " is ", value.dump(), ", outside [", min, ", ", max, "]"));
  }
  return value.get<int64_t>();
}

absl::StatusOr<int64_t> GetInt(const Json& object, std::string_view key, int64_t min, int64_t max) {
  const Json* value = FindMember(object, key);
  if (value == nullptr) return Missing(key);
  return AsInt(*value, key, min, max);
}

absl::StatusOr<double> GetNumber(const Json& object, std::string_view key) {
  const Json* value = FindMember(object, key);
  if (value == nullptr) return Missing(key);
  return AsNumber(*value, key);
}

absl::StatusOr<bool> GetBool(const Json& object, std::string_view key) {
  const Json* value = FindMember(object, key);
  if (value == nullptr) return Missing(key);
  return AsBool(*value, key);
}

absl::StatusOr<std::string> GetString(const Json& object, std::string_view key) {
  const Json* value = FindMember(object, key);
  if (value == nullptr) return Missing(key);
  return AsString(*value, key);
}

absl::StatusOr<const Json*> GetArray(const Json& object, std::string_view key) {
  const Json* value = FindMember(object, key);
  if (value == nullptr) return Missing(key);
  if (!value->is_array()) return WrongType(key, "an array", *value);
  return value;
}

absl::StatusOr<const Json*> GetObject(const Json& object, std::string_view key) {
  const Json* value = FindMember(object, key);
  if (value == nullptr) return Missing(key);
  if (!value->is_object()) return WrongType(key, "an object", *value);
  return value;
}

absl::StatusOr<std::optional<int64_t>> GetOptionalInt(const Json& object, std::string_view key, int64_t min,
                                                      int64_t max) {
  if (FindMember(object, key) == nullptr) return std::nullopt;
  SCION_ASSIGN_OR_RETURN(const int64_t value, GetInt(object, key, min, max));
  return value;
}

absl::StatusOr<std::optional<double>> GetOptionalNumber(const Json& object, std::string_view key) {
  if (FindMember(object, key) == nullptr) return std::nullopt;
  SCION_ASSIGN_OR_RETURN(const double value, GetNumber(object, key));
  return value;
}

absl::StatusOr<std::optional<bool>> GetOptionalBool(const Json& object, std::string_view key) {
  if (FindMember(object, key) == nullptr) return std::nullopt;
  SCION_ASSIGN_OR_RETURN(const bool value, GetBool(object, key));
  return value;
}

absl::StatusOr<std::string> GetStringOr(const Json& object, std::string_view key, std::string_view otherwise) {
  if (FindMember(object, key) == nullptr) return std::string(otherwise);
  return GetString(object, key);
}

}  // namespace scion
