// What the CachedBackend of one model asks of a server that has others too: turns, so that loading one takes nothing from another
// that is just about to be used, and leave for calls that no client waits for.
// Thread: the I/O thread. Outlives the CachedBackends.
#pragma once

#include <utility>

#include "base/cancel.hpp"
#include "base/task.hpp"

namespace cairn {

class CachedBackend;

class SharedServer {
 public:
  virtual ~SharedServer() = default;

  // A client wants the model, which may have to be loaded now, and others to make room for it: waits for requests that are about
  // to be forwarded to those, and has their slots saved. Every call is followed by after_load().
  virtual Task<void> before_load(CachedBackend& model) = 0;
  virtual void after_load(CachedBackend& model) = 0;
  // The model's own calls on a client's behalf reach it and load nothing.
  virtual Task<bool> is_there(CachedBackend& model, CancelSource& cancel) = 0;
  // So do calls that no client waits for, and they do not make it look used lately.
  virtual Task<bool> may_touch(CachedBackend& model) = 0;
  // A request no longer waits for the model to be there; where it is, the request begins its turn at once.
  virtual void wait_ended() = 0;
  // It is another kind of server now, or has no such model any more.
  virtual void suspect_changed() = 0;

  // While a request holds one, no other model is loaded in place of its own.
  class Turn {
   public:
    Turn() = default;
    Turn(SharedServer& server, CachedBackend& model) : server_(&server), model_(&model) {}
    Turn(Turn&& other) noexcept : server_(std::exchange(other.server_, nullptr)), model_(other.model_) {}
    Turn& operator=(Turn&& other) noexcept {
      if (this != &other) {
        end();
        server_ = std::exchange(other.server_, nullptr);
        model_ = other.model_;
      }
      return *this;
    }
    ~Turn() { end(); }
    void end() {
      if (SharedServer* server = std::exchange(server_, nullptr)) server->turn_ended(*model_);
    }

   private:
    SharedServer* server_ = nullptr;
    CachedBackend* model_ = nullptr;
  };
  virtual Task<Turn> begin_turn(CachedBackend& model, CancelSource& cancel) = 0;

 private:
  virtual void turn_ended(CachedBackend& model) = 0;
};

}  // namespace cairn
