#include "request/json_fields.hpp"

#include <array>
#include <charconv>
#include <cmath>

#include "base/error.hpp"

namespace cairn {

namespace {

namespace json = boost::json;

// The shortest digits that read back as the same number; a point and at least one digit behind it, up to 15 places.
void append_double(std::string& out, double number) {
  std::array<char, 32> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), std::abs(number), std::chars_format::scientific).ptr;
  const std::string_view text(buffer.data(), static_cast<std::size_t>(end - buffer.data()));
  const std::size_t e = text.find('e');
  std::string digits(1, text[0]);
  if (e > 2) digits += text.substr(2, e - 2);
  int exponent = 0;
  const char* sign = text.data() + e + 1;
  std::from_chars(*sign == '+' ? sign + 1 : sign, text.data() + text.size(), exponent);

  constexpr int most_places = 15, least_exponent = -4;
  const int places = number == 0 ? 1 : exponent + 1;  // before the point
  const int count = static_cast<int>(digits.size());
  if (std::signbit(number)) out += '-';
  if (places > most_places || places <= least_exponent) {
    out += text;
  } else if (places <= 0) {
    out += "0.";
    out.append(static_cast<std::size_t>(-places), '0');
    out += digits;
  } else if (count <= places) {
    out += digits;
    out.append(static_cast<std::size_t>(places - count), '0');
    out += ".0";
  } else {
    out += digits.substr(0, static_cast<std::size_t>(places));
    out += '.';
    out += digits.substr(static_cast<std::size_t>(places));
  }
}

}  // namespace

Result<json::object> parse_object(std::string_view text) {
  json::parse_options options;
  options.max_depth = deepest_json;
  boost::system::error_code error;
  json::value value = json::parse(text, error, {}, options);
  if (error || !value.is_object()) return downstream_error(ErrorCode::malformed, "body: not a JSON object");
  return std::move(value.get_object());
}

const json::value* member(const json::value& value, std::string_view key) {
  const json::object* object = value.if_object();
  return object != nullptr ? object->if_contains(key) : nullptr;
}

std::string string_member_or(const json::value& value, std::string_view key, std::string_view fallback) {
  const json::value* found = member(value, key);
  if (found == nullptr || !found->is_string()) return std::string{fallback};
  return std::string{std::string_view{found->get_string()}};
}

void append_compact(std::string& out, const json::value& value) {
  const char* between = "";
  if (const json::object* object = value.if_object()) {
    out += '{';
    for (const auto& [key, inner] : *object) {
      out += between;
      out += json::serialize(key);
      out += ':';
      append_compact(out, inner);
      between = ",";
    }
    out += '}';
  } else if (const json::array* array = value.if_array()) {
    out += '[';
    for (const json::value& inner : *array) {
      out += between;
      append_compact(out, inner);
      between = ",";
    }
    out += ']';
  } else if (const double* number = value.if_double()) {
    append_double(out, *number);
  } else {
    out += json::serialize(value);
  }
}

}  // namespace cairn
