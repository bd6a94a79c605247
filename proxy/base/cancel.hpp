// Tells the steps of one request that its client has left: callbacks instead of cancelled coroutines, so that every
// path still ends in `finish` with its slot and connections given back.
// Thread: the I/O thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

namespace cairn {

class CancelSource {
 public:
  CancelSource() = default;
  CancelSource(const CancelSource&) = delete;
  CancelSource& operator=(const CancelSource&) = delete;

  // Runs the callbacks, once; later calls do nothing.
  void cancel() {
    if (cancelled_) return;
    cancelled_ = true;
    // A callback may remove others, or itself: take them one at a time.
    while (!callbacks_.empty()) {
      auto node = callbacks_.extract(callbacks_.begin());
      node.mapped()();
    }
  }
  bool cancelled() const { return cancelled_; }

  // Removes its callback when it goes out of scope.
  class [[nodiscard]] Registration {
   public:
    Registration() = default;
    Registration(CancelSource* source, std::uint64_t id) : source_(source), id_(id) {}
    Registration(Registration&& other) noexcept : source_(std::exchange(other.source_, nullptr)), id_(other.id_) {}
    Registration& operator=(Registration&& other) noexcept {
      if (this != &other) {
        reset();
        source_ = std::exchange(other.source_, nullptr);
        id_ = other.id_;
      }
      return *this;
    }
    ~Registration() { reset(); }
    void reset() {
      if (source_ != nullptr) source_->callbacks_.erase(id_);
      source_ = nullptr;
    }

   private:
    CancelSource* source_ = nullptr;
    std::uint64_t id_ = 0;
  };

  // Runs `callback` on cancel(), or at once when that has already happened. The source must outlive the registration.
  Registration on_cancel(std::function<void()> callback) {
    if (cancelled_) {
      callback();
      return {};
    }
    const std::uint64_t id = next_id_++;
    callbacks_.emplace(id, std::move(callback));
    return Registration{this, id};
  }

 private:
  bool cancelled_ = false;
  std::uint64_t next_id_ = 1;
  std::map<std::uint64_t, std::function<void()>> callbacks_;
};

}  // namespace cairn
