#include "store_commands.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/json.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <utility>

#include "base/printable_text.hpp"
#include "http/checkpoint_endpoints.hpp"
#include "progress_line.hpp"
#include "progress_ticker.hpp"
#include "store_client.hpp"
#include "warm.hpp"

namespace cairn {

namespace json = boost::json;

namespace {

std::string path_of(std::int64_t id, std::string_view action = {}) { return fmt::format("{}/{}{}", checkpoints_path, id, action); }

std::string ago(std::int64_t unix_ms) {
  const auto now = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  const std::int64_t seconds = std::max<std::int64_t>(0, now - unix_ms / 1000);
  if (seconds < 120) return fmt::format("{} s", seconds);
  if (seconds < 7200) return fmt::format("{} min", seconds / 60);
  if (seconds < 172800) return fmt::format("{} h", seconds / 3600);
  return fmt::format("{} d", seconds / 86400);
}

double mib(std::uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }
double mib(const json::value& bytes) { return mib(bytes.to_number<std::uint64_t>()); }

void print_json(const json::value& value) { fmt::print("{}\n", json_text(value)); }

void print_list(const json::object& answer) {
  const bool tiers = answer.contains("disk_bytes");
  fmt::print("{:>6}  {:>8}  {:>10}  {:>5}  {:>9}  {:<12}  {}{}\n", "id", "tokens", "MiB", "uses", "last used", "kind",
             tiers ? "where     " : "", "pin");
  for (const json::value& value : answer.at("checkpoints").as_array()) {
    const json::object& one = value.as_object();
    std::string pin = one.at("pinned").as_bool() ? "pinned" : "";
    if (const json::value* label = one.if_contains("pin_label")) pin = printable_text(label->as_string());
    std::string where;
    if (tiers) where = fmt::format("{:<10}", std::string_view{one.at("tier").as_string()});
    fmt::print("{:>6}  {:>8}  {:>10.1f}  {:>5}  {:>9}  {:<12}  {}{}\n", one.at("id").to_number<std::int64_t>(),
               one.at("tokens").to_number<std::int64_t>(), mib(one.at("bytes")), one.at("uses").to_number<std::int64_t>(),
               ago(one.at("last_used_unix_ms").to_number<std::int64_t>()), std::string_view{one.at("kind").as_string()}, where, pin);
  }
  fmt::print("{} states, {:.1f} MiB\n", answer.at("checkpoints").as_array().size(), mib(answer.at("bytes")));
}

void print_fields(const json::object& object) {
  for (const auto& field : object) {
    const bool text = field.value().is_string();
    fmt::print("{:<20} {}\n", std::string_view{field.key()}, printable_text(text ? std::string{field.value().as_string()} : json_text(field.value())));
  }
}

// Where whoever asked looks for it. The status to exit with.
int failed(const Error& error, const StoreCommand& command) {
  if (command.as_json) {
    json::object told;
    told["error"] = error.context;
    print_json(told);
  } else {
    fmt::print(stderr, "cairn: {}\n", printable_text(error.context));
  }
  return 1;
}

// Beside those listed.
struct NotListed {
  const char* name;  // in the list's answer
  const char* what;
  std::uint64_t count = 0;
  std::string text() const { return fmt::format("{} {}", count, what); }
};
using AllNotListed = std::array<NotListed, 2>;
AllNotListed not_listed(const json::object& list) {
  AllNotListed all{NotListed{"absent", "more states that the index names are missing, or have another size"},
                   NotListed{"damaged", "more entries of the index are damaged: the next start of cairn serve drops them with their states"}};
  for (NotListed& some : all) {
    if (const json::value* count = list.if_contains(some.name)) some.count = count->to_number<std::uint64_t>();
  }
  return all;
}
void say(const AllNotListed& all) {
  for (const NotListed& some : all) {
    if (some.count > 0) fmt::print(stderr, "cairn: {}\n", some.text());
  }
}

struct Chosen {
  std::vector<std::int64_t> ids;
  bool listed = false;        // all that there were a moment ago: one that is gone is no mistake
  AllNotListed not_listed{};  // only where all are asked for
  std::uint64_t pinned = 0;   // left out: all are to be evicted
};
ResultTask<Chosen> choose(StoreClient& store, const StoreCommand& command) {
  if (!command.all && !command.ids.empty()) co_return Chosen{command.ids};
  Result<json::value> answer = co_await store.call("GET", std::string(checkpoints_path));
  if (!answer) co_return answer.error();
  Chosen chosen;
  chosen.listed = true;
  chosen.not_listed = not_listed(answer->as_object());
  for (const json::value& one : answer->as_object().at("checkpoints").as_array()) {
    if (command.all && one.as_object().at("pinned").as_bool()) {
      ++chosen.pinned;
    } else {
      chosen.ids.push_back(one.as_object().at("id").to_number<std::int64_t>());
    }
  }
  co_return chosen;
}

// What `verify` has to read of each state, where somebody sees how far it has come.
Task<std::map<std::int64_t, std::uint64_t>> bytes_to_read(StoreClient& store) {
  std::map<std::int64_t, std::uint64_t> bytes;
  if (!ProgressLine(0).shown()) co_return bytes;
  const Result<json::value> listed = co_await store.call("GET", std::string(checkpoints_path));
  if (!listed) co_return bytes;
  for (const json::value& value : listed->as_object().at("checkpoints").as_array()) {
    const json::object& one = value.as_object();
    const json::value* size = one.if_contains("bytes");
    const json::value* tier = one.if_contains("tier");
    const std::uint64_t copies = tier != nullptr && tier->as_string() == "ram+disk" ? 2 : 1;
    if (size != nullptr) bytes[one.at("id").to_number<std::int64_t>()] = size->to_number<std::uint64_t>() * copies;
  }
  co_return bytes;
}

// Of a state that is being verified.
Task<std::uint64_t> verified_bytes(StoreClient& store, std::int64_t id) {
  const Result<json::value> shown = co_await store.call("GET", path_of(id));
  const json::value* read = shown ? shown->as_object().if_contains("verified_bytes") : nullptr;
  co_return read == nullptr ? 0 : read->to_number<std::uint64_t>();
}

// What is wrong with the index as a whole; empty: nothing.
Task<std::string> trouble_with_index(StoreClient& store) {
  const Result<json::value> answer = co_await store.call("POST", std::string(checkpoints_path) + "/verify");
  constexpr int not_found = 404;
  if (!answer && answer.error().status == not_found) co_return std::string{};  // an older Cairn serves
  if (!answer) co_return answer.error().context;
  const json::object& object = answer->as_object();
  if (object.at("good").as_bool()) co_return std::string{};
  const bool rebuilt = object.at("rebuilt").as_bool();
  co_return fmt::format("damaged, {}: {}", rebuilt ? "and built anew of what could be read" : "cairn serve builds it anew when that is in the way",
                        std::string_view{object.at("why").as_string()});
}

// The same call for each of several; goes on after an error.
Task<int> for_each_id(StoreClient& store, const StoreCommand& command, std::string_view method, std::string_view action) {
  const Result<Chosen> chosen = co_await choose(store, command);
  if (!chosen) co_return failed(chosen.error(), command);
  const std::vector<std::int64_t>& ids = chosen->ids;
  std::string body;
  if (action == "/pin" && !command.label.empty()) {
    json::object label;
    label["label"] = command.label;
    body = json::serialize(label);
  }
  json::array answers;
  std::vector<std::string> lines;
  int status = 0;
  say(chosen->not_listed);
  if (chosen->pinned > 0) fmt::print(stderr, "cairn: {} pinned {}\n", chosen->pinned, chosen->pinned == 1 ? "state stays" : "states stay");
  const bool verifies = action == "/verify";
  {
    const auto executor = co_await boost::asio::this_coro::executor;
    std::map<std::int64_t, std::uint64_t> sizes;
    if (verifies) sizes = co_await bytes_to_read(store);
    const auto size_of = [&sizes](std::int64_t id) { return sizes.contains(id) ? std::max<std::uint64_t>(1, sizes.at(id)) : 1; };
    std::uint64_t total = 0, before = 0;
    for (const std::int64_t id : ids) total += size_of(id);
    const ProgressLine progress(total);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::int64_t id = ids[i];
      const auto show = [&](std::uint64_t read) {
        const std::uint64_t done = before + std::min(read, size_of(id));
        const std::string bytes = sizes.empty() ? "" : fmt::format(", {:.1f} of {:.1f} MiB", mib(done), mib(total));
        progress.show(done, fmt::format("{} of {}{}", i, ids.size(), bytes));
      };
      show(0);
      std::function<Task<void>()> look;
      if (!sizes.empty()) {
        look = [&]() -> Task<void> {
          const std::uint64_t read = co_await verified_bytes(store, id);
          if (read > 0) show(read);  // else it has just ended
        };
      }
      ProgressTicker ticker(executor, std::move(look));
      Result<json::value> answer = co_await store.call(method, path_of(id, action), body);
      co_await ticker.stop();
      before += size_of(id);
      constexpr int not_found = 404;
      if (!answer && chosen->listed && answer.error().status == not_found) {
        lines.push_back(fmt::format("{}: gone meanwhile", id));
        json::object gone;
        gone["id"] = id;
        gone["gone"] = true;
        answers.push_back(std::move(gone));
        continue;
      }
      if (!answer) {
        status = 1;
        lines.push_back(fmt::format("{}: {}", id, answer.error().context));
        json::object failed;
        failed["id"] = id;
        failed["error"] = answer.error().context;
        answers.push_back(std::move(failed));
        continue;
      }
      const json::object& object = answer->as_object();
      const json::value* good = object.if_contains("good");
      if (good != nullptr && !good->as_bool()) {
        status = 1;
        lines.push_back(fmt::format("{}: bad and dropped: {}", id, std::string_view{object.at("why").as_string()}));
      } else if (good != nullptr) {
        const json::value* other = object.if_contains("other_copy");
        if (other != nullptr) status = 1;
        lines.push_back(fmt::format("{}: good, {:.1f} MiB{}", id, mib(object.at("bytes")),
                                    other == nullptr ? "" : fmt::format("; a second copy is bad: {}", std::string_view{other->as_string()})));
      } else {
        lines.push_back(fmt::format("{}: {}", id, method == "DELETE" ? "evicted" : action == "/pin" ? "pinned" : "unpinned"));
      }
      answers.push_back(std::move(*answer));
    }
  }
  for (const NotListed& some : chosen->not_listed) {
    if (some.count == 0) continue;
    if (verifies) status = 1;
    json::object told;
    told[some.name] = some.count;
    if (verifies) told["error"] = some.text();
    answers.push_back(std::move(told));
  }
  if (chosen->pinned > 0) {
    json::object pinned;
    pinned["pinned"] = chosen->pinned;
    answers.push_back(std::move(pinned));
  }
  std::string trouble;
  if (verifies && chosen->listed) trouble = co_await trouble_with_index(store);
  if (!trouble.empty()) {
    status = 1;
    lines.push_back(fmt::format("index: {}", trouble));
    json::object told;
    told["index_good"] = false;
    told["error"] = trouble;
    answers.push_back(std::move(told));
  }
  if (command.as_json) {
    print_json(answers);
  } else {
    for (const std::string& line : lines) fmt::print("{}\n", printable_text(line));
  }
  co_return status;
}

Task<int> read(StoreClient& store, const std::string& name, const StoreCommand& command) {
  const std::string path = name == "list" ? std::string(checkpoints_path) : path_of(command.ids.front());
  Result<json::value> answer = co_await store.call("GET", path);
  if (!answer) co_return failed(answer.error(), command);
  if (name == "list") say(not_listed(answer->as_object()));
  if (command.as_json) {
    print_json(*answer);
  } else if (name == "list") {
    print_list(answer->as_object());
  } else {
    print_fields(answer->as_object());
  }
  co_return 0;
}

Task<int> run(const std::string& name, const Config& config, const StoreCommand& command) {
  const auto executor = co_await boost::asio::this_coro::executor;
  BlockingPool pool(1);
  StoreClient store(executor, config, pool);
  const bool needs_backend = name == "warm";
  Result<void> connected;
  if (needs_backend) {
    connected = store.connect_to_server();
    if (connected && !config.state_dir.empty()) {
      const Result<void> right = co_await store.has_named_store();
      if (!right && right.error().code == ErrorCode::invalid) connected = right;
    }
  } else {
    connected = co_await store.connect();
  }
  if (!connected) co_return failed(connected.error(), command);
  if (needs_backend) co_return co_await warm(store, command.files, command.as_json);
  if (name == "list" || name == "show") co_return co_await read(store, name, command);
  if (name == "evict") co_return co_await for_each_id(store, command, "DELETE", "");
  co_return co_await for_each_id(store, command, "POST", "/" + name);
}

}  // namespace

std::vector<CLI::App*> add_store_commands(CLI::App& app, StoreCommand& command) {
  std::vector<CLI::App*> commands;
  const auto add = [&](const char* name, const char* about) {
    CLI::App* added = app.add_subcommand(name, about);
    added->add_flag("--json", command.as_json, "the answer as JSON");
    commands.push_back(added);
    return added;
  };
  const auto with_ids = [&](CLI::App* added) { return added->add_option("id", command.ids, "numbers, as `cairn list` shows them"); };
  add("list", "the saved states");
  with_ids(add("show", "one saved state in full"))->required()->expected(1);
  CLI::App* pin = add("pin", "protect saved states from eviction");
  with_ids(pin)->required();
  pin->add_option("--label", command.label, "why, for the list");
  with_ids(add("unpin", "end that protection"))->required();
  CLI::App* evict = add("evict", "remove saved states that are not pinned");
  CLI::Option* ids = with_ids(evict);
  evict->add_flag("--all", command.all, "every one that is not pinned")->excludes(ids);
  evict->callback([ids, &command] {
    if (ids->empty() && !command.all) throw CLI::RequiredError("numbers, or --all");
  });
  with_ids(add("verify", "read saved states whole (all, or those given) and drop the bad ones"));
  CLI::App* warm = add("warm", "load prompts ahead of time through a running `cairn serve`");
  warm->add_option("file", command.files,
                   "text, or the JSON body of a request (chat, completion, messages, responses, infill); - or none: stdin");
  return commands;
}

int run_store_command(const std::string& name, const Config& config, const StoreCommand& command) {
  spdlog::set_level(spdlog::level::off);
  boost::asio::io_context io(1);
  int status = 1;
  const auto ended = [&](std::exception_ptr error, int result) {
    if (error) std::rethrow_exception(error);
    status = result;
  };
  boost::asio::co_spawn(io, run(name, config, command), ended);
  try {
    io.run();
  } catch (const std::exception& error) {
    if (std::ferror(stdout) != 0) throw;  // nothing more can be said there
    return failed(internal_error(fmt::format("the answer is not what was expected: {}", error.what())), command);
  }
  return status;
}

}  // namespace cairn
