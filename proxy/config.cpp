#include "config.hpp"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "backend/upstream.hpp"
#include "base/place.hpp"

namespace cairn {

namespace {

Error invalid(std::string context) { return Error{ErrorCode::invalid, ErrorSource::internal, false, 0, std::move(context)}; }

std::string where(const std::string& path, const YAML::Mark& mark) {
  return mark.is_null() ? path : fmt::format("{}:{}", path, mark.line + 1);
}

template <class Number>
Result<Number> parse_number(std::string_view text, Number least, Number most) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < least || value > most) {
    return invalid(fmt::format("'{}' is not a number from {} to {}", text, least, most));
  }
  return value;
}

// Takes a value's text into the configuration.
using Setter = std::function<Result<void>(Config&, const std::string&)>;

template <class Value>
Setter into(Value Config::*member, Result<Value> (*parse)(std::string_view)) {
  return [member, parse](Config& config, const std::string& text) -> Result<void> {
    Result<Value> value = parse(text);
    if (!value) return value.error();
    config.*member = *value;
    return {};
  };
}

Result<std::string> text_as_is(std::string_view text) { return std::string{text}; }
Result<std::string> listen_text(std::string_view text) {
  Result<ListenAddress> address = parse_listen(text);
  if (!address) return address.error();
  return std::string{text};
}
Result<std::string> backend_url(std::string_view text) {
  Result<UpstreamAddress> address = parse_upstream_url(text);
  if (!address) return address.error();
  return std::string{text};
}
Result<std::chrono::seconds> seconds(std::string_view text) {
  Result<std::uint32_t> value = parse_number<std::uint32_t>(text, 0, 3600);
  if (!value) return value.error();
  return std::chrono::seconds{*value};
}
Result<void> set_recomputation(Config& config, const std::string& text) {
  Result<Recomputation> bound = parse_recomputation(text);
  if (!bound) return bound.error();
  config.worst_recomputation = bound->time;
  if (bound->tokens > 0) config.worst_recomputation_tokens = bound->tokens;
  return {};
}
const std::map<std::string, Setter>& setters() {
  static const std::map<std::string, Setter> table{
      {"listen", into(&Config::listen, &listen_text)},
      {"backend", into(&Config::backend, &backend_url)},
      {"backend_api_key", into(&Config::backend_api_key, &text_as_is)},
      {"own_api_key", into(&Config::own_api_key, &text_as_is)},
      {"tls_certificate", into(&Config::tls_certificate, &text_as_is)},
      {"tls_key", into(&Config::tls_key, &text_as_is)},
      {"backend_ca", into(&Config::backend_ca, &text_as_is)},
      {"backend_tls_verify", into(&Config::backend_tls_verify, &parse_bool)},
      {"slot_dir", into(&Config::slot_dir, &text_as_is)},
      {"state_dir", into(&Config::state_dir, &text_as_is)},
      {"disk_dir", into(&Config::disk_dir, &text_as_is)},
      {"budget", into(&Config::budget_bytes, &parse_size)},
      {"ram_budget", into(&Config::ram_budget_bytes, &parse_size)},
      {"low_water", into(&Config::low_water, &parse_share)},
      {"min_free", into(&Config::min_free_bytes, &parse_size)},
      {"checkpoint_interval", into(&Config::checkpoint_interval_tokens, &parse_interval)},
      {"checkpoint_budget", into(&Config::checkpoint_budget, &parse_share)},
      {"worst_recomputation", &set_recomputation},
      {"ubatch", into(&Config::ubatch_tokens, &parse_count)},
      {"max_body", into(&Config::max_body_bytes, &parse_size)},
      {"max_header", into(&Config::max_header_bytes, &parse_size)},
      {"max_connections", into(&Config::max_connections, &parse_count)},
      {"max_waiting", into(&Config::max_waiting, &parse_count)},
      {"max_wait_s", into(&Config::max_wait, &seconds)},
      {"shutdown_limit_s", into(&Config::shutdown_limit, &seconds)},
      {"verify_checksums", into(&Config::verify_checksums, &parse_bool)},
      {"log_prompts", into(&Config::log_prompts, &parse_bool)},
      {"log_level", into(&Config::log_level, &parse_log_level)},
  };
  return table;
}

// One of `backends`. Errors: with file and line.
Result<BackendConfig> read_backend(const std::string& path, const YAML::Node& node) {
  const auto complaint = [&path](const YAML::Node& at, std::string_view what) {
    return invalid(fmt::format("{}: backends: {}", where(path, at.Mark()), what));
  };
  if (!node.IsMap()) return complaint(node, "each is a list of `key: value` (url, models, api_key, ubatch)");
  BackendConfig backend;
  std::set<std::string> seen;
  for (const auto& pair : node) {
    if (!pair.first.IsScalar()) return complaint(pair.first, "a key must be a word");
    const std::string key = pair.first.Scalar();
    if (!seen.insert(key).second) return complaint(pair.first, fmt::format("{}: it is there twice", key));
    const YAML::Node value = pair.second;
    if (key == "models") {
      const bool list = value.IsSequence() && value.size() > 0;
      if (!list) return complaint(value, "models: a list of names is expected");
      for (const YAML::Node& name : value) {
        if (!name.IsScalar() || name.Scalar().empty()) return complaint(name, "models: a name must be a word");
        backend.models.push_back(name.Scalar());
      }
      continue;
    }
    if (!value.IsScalar()) return complaint(value, fmt::format("{}: one value is expected", key));
    if (key == "url") {
      Result<std::string> url = backend_url(value.Scalar());
      if (!url) return complaint(value, "url: " + url.error().context);
      backend.url = *url;
    } else if (key == "api_key") {
      backend.api_key = value.Scalar();
    } else if (key == "ubatch") {
      Result<std::uint32_t> tokens = parse_count(value.Scalar());
      if (!tokens) return complaint(value, "ubatch: " + tokens.error().context);
      backend.ubatch_tokens = *tokens;
    } else {
      return complaint(pair.first, fmt::format("{}: there is no such key", key));
    }
  }
  if (backend.url.empty()) return complaint(node, "url: missing");
  return backend;
}

Result<std::vector<BackendConfig>> read_backends(const std::string& path, const YAML::Node& node) {
  const bool list = node.IsSequence() && node.size() > 0;
  if (!list) return invalid(fmt::format("{}: backends: a list is expected", where(path, node.Mark())));
  std::vector<BackendConfig> backends;
  std::set<std::string> names;
  bool rest = false;
  for (const YAML::Node& item : node) {
    Result<BackendConfig> backend = read_backend(path, item);
    if (!backend) return backend.error();
    const std::string line = where(path, item.Mark());
    if (backend->models.empty() && std::exchange(rest, true)) {
      return invalid(fmt::format("{}: backends: models: missing (only one may serve all that no other does)", line));
    }
    for (const std::string& name : backend->models) {
      if (!names.insert(name).second) return invalid(fmt::format("{}: backends: models: '{}' is there twice", line, name));
    }
    backends.push_back(std::move(*backend));
  }
  return backends;
}

}  // namespace

std::vector<BackendConfig> all_backends(const Config& config) {
  std::vector<BackendConfig> backends = config.backends;
  if (backends.empty()) {
    BackendConfig only;
    only.url = config.backend;
    backends.push_back(std::move(only));
  }
  for (BackendConfig& backend : backends) {
    if (backend.api_key.empty()) backend.api_key = config.backend_api_key;
    if (backend.ubatch_tokens == 0) backend.ubatch_tokens = config.ubatch_tokens;
  }
  return backends;
}

Result<std::uint32_t> parse_count(std::string_view text) { return parse_number<std::uint32_t>(text, 1, 1'000'000); }

Result<bool> parse_bool(std::string_view text) {
  if (text == "true" || text == "yes" || text == "on") return true;
  if (text == "false" || text == "no" || text == "off") return false;
  return invalid(fmt::format("'{}' is neither true nor false", text));
}

Result<std::string> parse_log_level(std::string_view text) {
  for (const std::string_view known : {"debug", "info", "warn", "error"}) {
    if (text == known) return std::string{text};
  }
  return invalid(fmt::format("'{}' is none of debug, info, warn, error", text));
}

Result<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit{end, static_cast<std::size_t>(text.data() + text.size() - end)};
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  static const std::map<std::string_view, unsigned> shifts{{"", 0},     {"B", 0},    {"K", 10},  {"KiB", 10}, {"M", 20},
                                                           {"MiB", 20}, {"G", 30},   {"GiB", 30}, {"T", 40},   {"TiB", 40}};
  const auto shift = shifts.find(unit);
  if (error != std::errc{} || shift == shifts.end() || (number << shift->second) >> shift->second != number) {
    return invalid(fmt::format("'{}' is not a size (20GiB, 500MiB, …)", text));
  }
  return number << shift->second;
}

Result<std::optional<std::uint32_t>> parse_interval(std::string_view text) {
  if (text == "auto") return std::optional<std::uint32_t>{};
  if (text == "off") return std::optional<std::uint32_t>{0};
  std::uint32_t tokens = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), tokens);
  if (error != std::errc{} || end != text.data() + text.size() || tokens < 128) {
    return invalid(fmt::format("'{}' is neither auto, nor off, nor a number of tokens, 128 or more", text));
  }
  return std::optional<std::uint32_t>{tokens};
}

Result<double> parse_share(std::string_view text) {
  const bool percent = !text.empty() && text.back() == '%';
  const std::string_view number = percent ? text.substr(0, text.size() - 1) : text;
  double value = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
  if (percent) value /= 100;
  if (error != std::errc{} || end != number.data() + number.size() || !(value >= 0 && value <= 1)) {
    return invalid(fmt::format("'{}' is not a share (3%, 0.03)", text));
  }
  return value;
}

Result<Recomputation> parse_recomputation(std::string_view text) {
  Recomputation bound;
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit{end, static_cast<std::size_t>(text.data() + text.size() - end)};
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  if (error == std::errc{} && unit.empty() && number >= 256 && number <= 1'000'000) {
    bound.tokens = number;
  } else if (error == std::errc{} && unit == "ms" && number > 0 && number <= 3'600'000) {
    bound.time = std::chrono::milliseconds{number};
  } else if (error == std::errc{} && unit == "s" && number > 0 && number <= 3600) {
    bound.time = std::chrono::seconds{number};
  } else {
    return invalid(fmt::format("'{}' is neither a number of tokens, 256 or more, nor a time (500ms, 2s)", text));
  }
  return bound;
}

Result<ListenAddress> parse_listen(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  ListenAddress address;
  if (colon != std::string_view::npos) {
    address.host = text.substr(0, colon);
    if (address.host.size() > 2 && address.host.front() == '[' && address.host.back() == ']') {
      address.host = address.host.substr(1, address.host.size() - 2);
    }
    if (address.host.empty()) address.host = "0.0.0.0";
    Result<std::uint16_t> port = parse_number<std::uint16_t>(text.substr(colon + 1), 0, 65535);
    if (port) {
      address.port = *port;
      return address;
    }
  }
  return invalid(fmt::format("'{}' is not HOST:PORT", text));
}

Result<Config> load_config(const std::string& path) {
  std::ifstream in(path);
  if (!in || (in.peek(), in.bad())) return invalid(fmt::format("{}: cannot be read", path));  // bad: a directory
  Config config;
  YAML::Node root;
  try {
    root = YAML::Load(in);
  } catch (const YAML::Exception& error) {
    return invalid(fmt::format("{}: {}", where(path, error.mark), error.msg));
  }
  if (root.IsNull()) return config;
  if (!root.IsMap()) return invalid(fmt::format("{}: a configuration is a list of `key: value`", where(path, root.Mark())));
  std::set<std::string> seen;
  for (const auto& pair : root) {
    if (!pair.first.IsScalar()) return invalid(fmt::format("{}: a key must be a word", where(path, pair.first.Mark())));
    const std::string key = pair.first.Scalar();
    if (!seen.insert(key).second) return invalid(fmt::format("{}: {}: it is there twice", where(path, pair.first.Mark()), key));
    if (key == "backends") {
      Result<std::vector<BackendConfig>> backends = read_backends(path, pair.second);
      if (!backends) return backends.error();
      config.backends = std::move(*backends);
      continue;
    }
    const auto setter = setters().find(key);
    if (setter == setters().end()) return invalid(fmt::format("{}: {}: there is no such key", where(path, pair.first.Mark()), key));
    if (!pair.second.IsScalar()) return invalid(fmt::format("{}: {}: one value is expected", where(path, pair.first.Mark()), key));
    Result<void> set = setter->second(config, pair.second.Scalar());
    if (!set) return invalid(fmt::format("{}: {}: {}", where(path, pair.second.Mark()), key, set.error().context));
  }
  if (seen.contains("backend") && seen.contains("backends")) {
    return invalid(fmt::format("{}: backends: beside them there is no backend", where(path, root["backends"].Mark())));
  }
  return config;
}

Result<void> validate(const Config& config) {
  Result<ListenAddress> listen = parse_listen(config.listen);
  if (!listen) return invalid("listen: " + listen.error().context);
  Result<UpstreamAddress> backend = parse_upstream_url(config.backend);
  if (!backend) return invalid("backend: " + backend.error().context);
  if (config.slot_dir.empty() != config.state_dir.empty()) {
    return invalid(config.slot_dir.empty() ? "slot_dir: missing (state_dir alone is of no use)"
                                           : "state_dir: missing (where Cairn keeps its index)");
  }
  // Each has a lock of its own.
  const std::array<std::pair<std::string_view, const std::string*>, 3> directories{
      {{"slot_dir", &config.slot_dir}, {"state_dir", &config.state_dir}, {"disk_dir", &config.disk_dir}}};
  for (auto one = directories.begin(); one != directories.end(); ++one) {
    for (auto other = directories.begin(); other != one; ++other) {
      if (!one->second->empty() && !other->second->empty() && place_of(*one->second) == place_of(*other->second)) {
        return invalid(fmt::format("{}: is {} itself; each must be a directory of its own", one->first, other->first));
      }
    }
  }
  if (config.tls_certificate.empty() != config.tls_key.empty()) {
    return invalid(config.tls_key.empty() ? "tls_key: missing (it may be the same file as tls_certificate)"
                                          : "tls_certificate: missing (tls_key alone is of no use)");
  }
  const std::vector<BackendConfig> backends = all_backends(config);
  const bool any_tls = std::any_of(backends.begin(), backends.end(), [](const BackendConfig& one) {
    const Result<UpstreamAddress> address = parse_upstream_url(one.url);
    return address && address->tls;
  });
  if (!any_tls && !config.backend_ca.empty()) {
    return invalid(fmt::format("backend_ca: the backend is {}, without TLS", backends.front().url));
  }
  if (!config.disk_dir.empty()) {
    if (config.slot_dir.empty()) return invalid("slot_dir: missing (disk_dir alone is of no use)");
    if (config.ram_budget_bytes > config.budget_bytes) return invalid("ram_budget: is more than budget, which must hold copies of it all");
  }
  return {};
}

}  // namespace cairn
