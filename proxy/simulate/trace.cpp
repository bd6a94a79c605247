#include "simulate/trace.hpp"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_map>
#include <utility>

namespace cairn {

namespace {

namespace dom = simdjson::dom;

constexpr std::uint32_t mooncake_block = 512;
constexpr std::uint64_t most_tokens = 1 << 30;  // of a prompt, an answer or a block
constexpr double longest_s = 1e12;

// What blocks are called: ids mean nothing in another file or session, so each gets numbers of its own, but for those that say
// they hold everywhere. Where ids are small numbers, as most are, these are made by adding, which is much faster than a table of
// all ids.
class BlockNumbers {
 public:
  void begin_scope() {
    first_ += used_;
    used_ = 0;
    others_.clear();
  }
  Token of(std::uint64_t id) {
    if (id < small && first_ < from_table - small) {
      used_ = std::max(used_, static_cast<Token>(id) + 1);
      return first_ + static_cast<Token>(id);
    }
    return in_table(others_, id);
  }
  // Of an id that means the same in every file.
  Token everywhere(std::uint64_t id) { return in_table(everywhere_, id); }

 private:
  Token in_table(std::unordered_map<std::uint64_t, Token>& table, std::uint64_t id) {
    const auto [at, is_new] = table.try_emplace(id, next_other_);
    if (is_new) ++next_other_;
    return at->second;
  }

  static constexpr Token small = 1 << 28;
  static constexpr Token from_table = 1 << 30;
  Token first_ = 0;  // of this scope
  Token used_ = 0;   // by it, from there on
  std::unordered_map<std::uint64_t, Token> others_, everywhere_;
  Token next_other_ = from_table;
};

Error no_trace(std::string what, ErrorCode code = ErrorCode::invalid) {
  Error error = internal_error(std::move(what));
  error.code = code;
  return error;
}

// One file's lines or session, appended to the trace. Lines that cannot be read are skipped.
class FileReader {
 public:
  FileReader(const std::string& path, Trace& trace, BlockNumbers& numbers) : path_(path), trace_(trace), numbers_(numbers) { numbers_.begin_scope(); }

  Result<void> read() {
    simdjson::padded_string text;
    if (const auto failed = simdjson::padded_string::load(path_).get(text)) {
      return disk_error(ErrorCode::io, fmt::format("{}: {}", path_, simdjson::error_message(failed)));
    }
    Result<void> done = read(text);
    if (!done) return no_trace(fmt::format("{}: {}", path_, done.error().context), done.error().code);
    if (skipped_ > 0) trace_.skipped.push_back(fmt::format("{}: {} of {} lines skipped; the first, {}", path_, skipped_, skipped_ + taken_, first_skipped_));
    if (odd_requests_ > 0) trace_.skipped.push_back(fmt::format("{}: {} requests skipped that have no t or in, or make no sense", path_, odd_requests_));
    return {};
  }

 private:
  // A line that is a document by itself: JSON lines. Otherwise the file is one document.
  Result<void> read(const simdjson::padded_string& text) {
    const std::string_view all = text;
    std::size_t begin = 0;
    dom::element document;
    for (std::size_t number = 1; begin < all.size(); ++number) {
      const std::size_t end = std::min(all.find('\n', begin), all.size());
      const std::string_view line = all.substr(begin, end - begin);
      begin = end + 1;
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      // What follows the line is at hand: the text is padded at its end.
      if (parser_.parse(line.data(), line.size(), false).get(document)) {
        const bool is_first = taken_ + skipped_ == 0;
        if (is_first && !parser_.parse(text).get(document)) return take(document);
        if (is_first) begins_as_json_ = false;
        skip(number, "no JSON");
        continue;
      }
      Result<void> taken = take_line(document);
      if (taken) {
        ++taken_;
      } else if (taken.error().code == ErrorCode::unsupported) {
        return no_trace(fmt::format("line {}: {}", number, taken.error().context), ErrorCode::unsupported);
      } else {
        skip(number, taken.error().context);
      }
    }
    if (taken_ > 0 || skipped_ == 0) return {};
    return no_trace(begins_as_json_ ? first_skipped_ : "neither JSON nor lines of it");
  }

  void skip(std::size_t number, std::string_view what) {
    if (skipped_++ == 0) first_skipped_ = fmt::format("line {}: {}", number, what);
  }

  // All of it or nothing.
  Result<void> take_line(const dom::element& document) {
    const std::size_t requests = trace_.requests.size(), blocks = trace_.blocks.size(), odd = odd_requests_;
    const std::uint32_t block_tokens = trace_.block_tokens;
    Result<void> taken = take(document);
    if (taken) return taken;
    trace_.requests.resize(requests);
    trace_.blocks.resize(blocks);
    odd_requests_ = odd;
    trace_.block_tokens = block_tokens;
    return taken;
  }

  Result<void> take(const dom::element& document) {
    dom::array nested, ids;
    std::string_view text;
    if (!document["requests"].get(nested)) {
      std::uint64_t block = 0;
      if (document["block_size"].get(block) || block == 0) return no_trace("a session without block_size");
      if (block > most_tokens) return no_trace("a block_size of more than 2^30 tokens");
      std::string_view scope;
      everywhere_ = !document["hash_id_scope"].get(scope) && scope == "global";
      numbers_.begin_scope();
      const std::size_t before = trace_.requests.size();
      Result<void> taken = session(nested, static_cast<std::uint32_t>(block), 0);
      everywhere_ = false;
      if (taken && trace_.requests.size() == before && nested.size() > 0) return no_trace("a session of which no request can be read");
      return taken;
    }
    double at = 0;
    if (document["timestamp"].get(at)) return no_trace("neither timestamp nor requests");
    if (!document["hash_ids"].get(ids)) {
      std::uint64_t prompt = 0, answer = 0;
      if (document["input_length"].get(prompt)) return no_trace("no input_length");
      (void)document["output_length"].get(answer);
      return add(at / 1000, prompt, answer, ids, mooncake_block);
    }
    if (document["input"].get(text)) return no_trace("neither hash_ids nor input");
    std::string_view answer;
    (void)document["output"].get(answer);
    return add_text(at / 1e6, text, answer);
  }

  // Times count from `start_s`.
  Result<void> session(const dom::array& requests, std::uint32_t block, double start_s) {
    double latest = 0;
    for (const dom::element request : requests) {
      double at = 0;
      const bool timed = !request["t"].get(at);
      dom::array nested, ids;
      if (!request["requests"].get(nested)) {  // a sub-agent: same ids; its clock is the session's, or began with it
        double first = at;
        if (nested.size() > 0) (void)nested.at(0)["t"].get(first);
        const bool own_clock = timed && first < std::min(at, latest);
        Result<void> taken = session(nested, block, start_s + (own_clock ? at : 0));
        if (!taken) return taken;
        continue;
      }
      std::uint64_t prompt = 0, answer = 0;
      if (!timed || request["in"].get(prompt)) {
        ++odd_requests_;
        continue;
      }
      (void)request["out"].get(answer);
      const std::size_t blocks = trace_.blocks.size(), before = trace_.requests.size();
      const bool has_ids = !request["hash_ids"].get(ids);  // else nothing is known of the prompt but its length
      Result<void> taken = has_ids ? add(start_s + at, prompt, answer, ids, block) : begin(start_s + at, prompt, answer, block);
      if (!taken && taken.error().code == ErrorCode::unsupported) return taken;
      if (!taken) {
        trace_.requests.resize(before);
        trace_.blocks.resize(blocks);
        ++odd_requests_;
        continue;
      }
      latest = at;
    }
    return {};
  }

  Result<void> add(double at_s, std::uint64_t prompt, std::uint64_t answer, const dom::array& ids, std::uint32_t block) {
    Result<void> begun = begin(at_s, prompt, answer, block);
    if (!begun) return begun;
    for (const dom::element id : ids) {
      std::uint64_t value = 0;
      if (id.get(value)) return no_trace("a hash id is no number");
      trace_.blocks.push_back(everywhere_ ? numbers_.everywhere(value) : numbers_.of(value));
    }
    return end();
  }

  Result<void> add_text(double at_s, std::string_view prompt, std::string_view answer) {
    constexpr std::size_t token_bytes = sizeof(Token);
    Result<void> begun = begin(at_s, prompt.size() / token_bytes, answer.size() / token_bytes, 1);
    if (!begun) return begun;
    const std::size_t tokens = prompt.size() / token_bytes;
    const std::size_t old = trace_.blocks.size();
    trace_.blocks.resize(old + tokens);
    std::memcpy(trace_.blocks.data() + old, prompt.data(), tokens * token_bytes);
    return end();
  }

  Result<void> begin(double at_s, std::uint64_t prompt, std::uint64_t answer, std::uint32_t block) {
    if (trace_.block_tokens == 0) trace_.block_tokens = block;
    if (trace_.block_tokens != block) {
      return no_trace(fmt::format("blocks of {} tokens, others of {}: simulate them one after the other", block, trace_.block_tokens),
                      ErrorCode::unsupported);
    }
    if (prompt > most_tokens || answer > most_tokens) return no_trace("a prompt or an answer of more than 2^30 tokens");
    if (std::abs(at_s) > longest_s) return no_trace("a time beyond 10^12 s");
    trace_.requests.push_back(TraceRequest{at_s, static_cast<std::uint32_t>(prompt), static_cast<std::uint32_t>(answer), trace_.blocks.size(), 0});
    return {};
  }

  Result<void> end() {
    TraceRequest& request = trace_.requests.back();
    request.blocks = static_cast<std::uint32_t>(trace_.blocks.size() - request.first_block);
    return {};
  }

  const std::string& path_;
  Trace& trace_;
  BlockNumbers& numbers_;
  std::size_t taken_ = 0;    // lines
  std::size_t skipped_ = 0;
  std::string first_skipped_;  // which, and what was wrong with it
  bool begins_as_json_ = true;
  bool everywhere_ = false;  // the ids of the session mean the same in every file
  std::size_t odd_requests_ = 0;
  dom::parser parser_;
};

}  // namespace

Result<Trace> read_traces(const std::vector<std::string>& paths) {
  Trace trace;
  BlockNumbers numbers;
  for (const std::string& path : paths) {
    FileReader reader(path, trace, numbers);
    Result<void> read = reader.read();
    if (!read) return read.error();
  }
  const auto earlier = [](const TraceRequest& a, const TraceRequest& b) { return a.at_s < b.at_s; };
  std::stable_sort(trace.requests.begin(), trace.requests.end(), earlier);
  if (!trace.requests.empty()) {
    const double first_s = trace.requests.front().at_s;
    for (TraceRequest& request : trace.requests) request.at_s -= first_s;
  }
  return trace;
}

}  // namespace cairn
