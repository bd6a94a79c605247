// What the store reads: tokens from the index, states before they are restored.
#include <boost/asio/co_spawn.hpp>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <utility>

#include "base/wakeup.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/store.hpp"
#include "checkpoint/store_disk.hpp"

namespace cairn {

ResultTask<std::size_t> CheckpointStore::load_tokens(TokenVisitor visitor, TokenVisitor announce) {
  // Small enough not to hold the I/O thread up, large enough for the trips to and fro not to matter.
  constexpr std::size_t batch_tokens = 1u << 18;
  const auto executor = co_await boost::asio::this_coro::executor;
  // The next batch is read and decoded while this one is visited.
  struct Coming {
    explicit Coming(boost::asio::any_io_executor on) : read(on) {}
    Wakeup read;
    Result<Index::TokenBatch> batch;
  };
  std::vector<CheckpointId> expected;
  expected.reserve(entries_.size());
  for (const auto& [id, entry] : entries_) expected.push_back(id);
  std::sort(expected.begin(), expected.end());
  const auto fetch = [&](CheckpointId after) {
    auto coming = std::make_shared<Coming>(executor);
    const auto job = [this, after, &expected]() -> Result<Index::TokenBatch> {
      auto batch = index_->tokens_after(after, batch_tokens);
      if (batch || batch.error().code != ErrorCode::corrupt) return batch;
      // A damaged page: one by one, whatever can be read.
      Index::TokenBatch rest;
      auto at = std::upper_bound(expected.begin(), expected.end(), after);
      for (; at != expected.end() && rest.tokens.size() + rest.rows.size() < batch_tokens; ++at) {
        const auto tokens = index_->tokens(*at);
        rest.rows.push_back({*at, tokens ? Result<std::size_t>(tokens->size()) : tokens.error()});
        if (tokens) rest.tokens.insert(rest.tokens.end(), tokens->begin(), tokens->end());
      }
      return rest;
    };
    boost::asio::co_spawn(executor, index_pool_.run(job), [coming](std::exception_ptr thrown, Result<Index::TokenBatch> batch) {
      if (thrown) std::rethrow_exception(thrown);
      coming->batch = std::move(batch);
      coming->read.notify();
    });
    return coming;
  };
  std::vector<CheckpointId> unread;  // without tokens, or with such as do not match their hash
  std::size_t handed_out = 0;
  auto next = expected.begin();
  std::shared_ptr<Coming> coming = fetch(CheckpointId{});
  for (;;) {
    co_await coming->read.wait();
    if (!coming->batch) co_return coming->batch.error();
    const Index::TokenBatch batch = std::move(*coming->batch);
    if (batch.rows.empty()) break;
    coming = fetch(batch.rows.back().id);
    TokenSpan rest = batch.tokens;
    std::vector<std::pair<const CheckpointRecord*, TokenSpan>> good;
    good.reserve(batch.rows.size());
    for (const auto& [id, tokens] : batch.rows) {
      for (; next != expected.end() && *next < id; ++next) unread.push_back(*next);
      if (next != expected.end() && *next == id) ++next;
      if (!tokens && tokens.error().code != ErrorCode::corrupt && tokens.error().code != ErrorCode::not_found) {
        co_await coming->read.wait();
        co_return tokens.error();
      }
      const TokenSpan own = rest.first(tokens ? *tokens : 0);
      rest = rest.subspan(own.size());
      const auto entry = entries_.find(id);
      if (entry == entries_.end()) continue;
      if (!tokens) {
        unread.push_back(id);
        continue;
      }
      good.emplace_back(&entry->second.record, own);
    }
    for (std::size_t i = 0; i < good.size(); ++i) {
      if (announce && i + announced_ahead < good.size()) announce(*good[i + announced_ahead].first, good[i + announced_ahead].second);
      visitor(*good[i].first, good[i].second);
    }
    handed_out += good.size();
  }
  unread.insert(unread.end(), next, expected.end());
  for (const CheckpointId id : unread) {
    if (entries_.contains(id)) ++counters_.damaged_entries;
    condemn(id, RemovalReason::bad_file);
  }
  auto tidied = co_await tidy();
  (void)tidied;  // tried again later
  co_return handed_out;
}

ResultTask<Tokens> CheckpointStore::tokens_of(CheckpointId id) {
  const auto job = [this, id] { return index_->tokens(id); };
  auto tokens = co_await index_pool_.run(job);
  co_return tokens;
}

const CheckpointRecord* CheckpointStore::find(CheckpointId id) const {
  const auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : &found->second.record;
}

void CheckpointStore::for_each(const std::function<void(const CheckpointRecord&)>& visitor) const {
  for (const auto& [id, entry] : entries_) visitor(entry.record);
}

CheckpointStore::Use CheckpointStore::use(CheckpointId id) {
  if (!entries_.contains(id)) return {};
  return Use(this, id);
}

namespace {
// While one lives it is told how far it has come.
class ReadingAfresh {
 public:
  using All = std::map<CheckpointId, const std::atomic<std::uint64_t>*>;
  ReadingAfresh(All& all, CheckpointId id, const std::atomic<std::uint64_t>* so_far) : all_(all), id_(id), so_far_(so_far) {
    if (so_far_ != nullptr) all_[id_] = so_far_;
  }
  ReadingAfresh(const ReadingAfresh&) = delete;
  ReadingAfresh& operator=(const ReadingAfresh&) = delete;
  ~ReadingAfresh() {
    const auto at = all_.find(id_);
    if (at != all_.end() && at->second == so_far_) all_.erase(at);  // of two at once, the later one
  }

 private:
  All& all_;
  CheckpointId id_;
  const std::atomic<std::uint64_t>* so_far_;
};
}  // namespace

std::optional<std::uint64_t> CheckpointStore::read_afresh(CheckpointId id) const {
  const auto at = reading_afresh_.find(id);
  if (at == reading_afresh_.end()) return std::nullopt;
  return at->second->load();
}

ResultTask<VerifyOutcome> CheckpointStore::verify_before_restore(CheckpointId id, bool afresh) {
  const CheckpointRecord* record = find(id);
  if (record == nullptr) {
    co_return disk_error(ErrorCode::not_found, "checkpoint " + std::to_string(static_cast<std::int64_t>(id)) + " is gone");
  }
  std::atomic<std::uint64_t> so_far{0};
  const ReadingAfresh reading(reading_afresh_, id, afresh ? &so_far : nullptr);
  if (!has_tiers()) co_return co_await verify_copy(id, Tier::slots, afresh ? &so_far : nullptr);
  if (!afresh) {
    if (!record->in_slots) co_return co_await bring_up(id);
    auto verified = co_await verify_copy(id, Tier::slots, nullptr);
    // One copy was bad; the other may be brought up, or another request has done so meanwhile.
    record = find(id);
    if (verified || record == nullptr || !record->on_disk) co_return verified;
    co_return co_await bring_up(id);
  }
  VerifyOutcome both;
  std::optional<Error> failed;
  for (const Tier tier : {Tier::slots, Tier::disk}) {
    record = find(id);
    if (record == nullptr || !(tier == Tier::slots ? record->in_slots : record->on_disk)) continue;
    auto verified = co_await verify_copy(id, tier, &so_far);
    if (!verified) {
      failed = verified.error();
      continue;
    }
    both.checksum_read = true;
    both.bytes += verified->bytes;
    both.seconds += verified->seconds;
  }
  if (failed) both.other_copy = failed->context;
  // One that was read and is good may have been taken from the store meanwhile, for another reason.
  if (!both.checksum_read || (failed && find(id) == nullptr)) {
    co_return failed.value_or(disk_error(ErrorCode::not_found, "the checkpoint is gone"));
  }
  co_return both;
}

// A bad copy goes; the checkpoint with it, unless the other tier has one.
ResultTask<VerifyOutcome> CheckpointStore::verify_copy(CheckpointId id, Tier tier, std::atomic<std::uint64_t>* afresh) {
  const auto entry = entries_.find(id);
  if (entry == entries_.end()) co_return disk_error(ErrorCode::not_found, "the checkpoint is gone");
  const CheckpointRecord record = entry->second.record;
  const bool in_slots = tier == Tier::slots;
  const std::vector<FileStamp> verified_as = afresh != nullptr || !in_slots ? std::vector<FileStamp>{} : entry->second.verified_as;
  const std::string path = path_of(tier, record.file_name);
  const bool read_all = afresh != nullptr || options_.verify_checksums;
  const bool locked = in_slots ? slot_lock_ != nullptr : disk_lock_ != nullptr;
  const auto job = [&]() -> Result<Verified> {
    auto done = verify_files(files_, path, record, verified_as, read_all, afresh);
    // Is the file gone, or the whole directory (unmounted, renamed)? What comes back with it is not to be forgotten.
    if (done || done.error().code != ErrorCode::not_found || !locked) return done;
    if (auto same = same_directory(files_, in_slots ? options_.slot_dir : options_.disk_dir); !same) return same.error();
    return done;
  };
  auto verified = co_await (afresh != nullptr ? background_pool_ : disk_pool_).run(job);
  const auto again = entries_.find(id);
  if (verified) {
    counters_.checksum_bytes += verified->outcome.bytes;
    counters_.checksum_seconds += verified->outcome.seconds;
    if (verified->outcome.checksum_read) checksums_.add(verified->outcome.bytes, verified->outcome.seconds);
    if (again != entries_.end() && in_slots) {
      again->second.verified_as = verified->stamps;
      if (verified->outcome.checksum_read) {
        again->second.record.files = std::move(verified->stamps);  // moved or copied by somebody, and still good
        again->second.dirty = true;
      }
    }
    co_return verified->outcome;
  }
  const Error error = verified.error();
  const bool is_bad = error.code == ErrorCode::corrupt || error.code == ErrorCode::not_found;
  // Who found the same meanwhile has dropped that copy, or replaced it.
  const auto is_believed = [&](const CheckpointRecord& now) {
    return in_slots ? now.in_slots && same_stamps(now.files, record.files, false) : now.on_disk;
  };
  if (!is_bad) ++counters_.disk_errors;
  if (again != entries_.end() && is_believed(again->second.record)) {
    CheckpointRecord& now = again->second.record;
    if (in_slots && now.on_disk) {  // whatever is wrong: what is in RAM can be made anew
      if (is_bad) ++counters_.dropped_bad;
      leave_slots(id);
      condemned_.back().id = CheckpointId{};  // whoever uses the checkpoint has no use for this file, nor is it to be taken back
    } else if (!is_bad) {
      co_return error;
    } else if (!in_slots && now.in_slots) {
      ++counters_.dropped_bad;
      now.on_disk = false;
      counters_.disk_bytes -= now.bytes;
      condemned_.push_back({now.file_name, 0, CheckpointId{}, false, true});
    } else {
      condemn(id, RemovalReason::bad_file);
    }
  }
  auto tidied = co_await tidy();
  (void)tidied;  // tried again later
  co_return error;
}

}  // namespace cairn
