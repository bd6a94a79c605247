// Blocking sockets to script either side of a connection, and an I/O thread for the code under test.
// Thread: tests block on the main thread; everything of Cairn's runs on the I/O thread through on() and run().
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_future.hpp>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "backend/async.hpp"

namespace cairn::wire {

// A hang fails the test instead of the whole run.
constexpr int patience_s = 20;

inline std::size_t open_descriptors() {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) count += entry.path().empty() ? 0 : 1;
  return count;
}

class Peer {
 public:
  explicit Peer(int descriptor = -1) : descriptor_(descriptor) {
    if (descriptor_ < 0) return;
    timeval patience{patience_s, 0};
    ::setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ::setsockopt(descriptor_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    const int on = 1;
    ::setsockopt(descriptor_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  Peer(Peer&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Peer& operator=(Peer&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Peer() { close(); }

  static Peer connect(std::uint16_t port, int receive_buffer_bytes = 0) {
    const int descriptor = ::socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer_bytes > 0) {
      ::setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      ::close(descriptor);
      throw std::runtime_error("connect: " + std::string(strerror(errno)));
    }
    return Peer(descriptor);
  }

  // False when the other side has hung up.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const auto count = ::send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
  }
  // One segment a byte, as far as the kernel goes along.
  void send_bytewise(std::string_view bytes) {
    for (const char byte : bytes) send(std::string_view(&byte, 1));
  }
  // Until `text` holds `end`, or the stream ends.
  std::string read_until(std::string_view end) {
    std::size_t at = unread_.find(end);
    while (at == std::string::npos) {
      // Only what is new, and what it may complete: some tests read many megabytes.
      const std::size_t looked_at = unread_.size() < end.size() ? 0 : unread_.size() - end.size() + 1;
      if (!fill()) return std::exchange(unread_, {});
      at = unread_.find(end, looked_at);
    }
    const auto size = at + end.size();
    std::string text = unread_.substr(0, size);
    unread_.erase(0, size);
    return text;
  }
  std::string read_exactly(std::size_t size) {
    while (unread_.size() < size && fill()) {
    }
    std::string text = unread_.substr(0, size);
    unread_.erase(0, text.size());
    return text;
  }
  std::string read_head() { return read_until("\r\n\r\n"); }
  std::string read_all() {
    while (fill()) {
    }
    return std::exchange(unread_, {});
  }
  // Waits for the other side's end or reset; true when it came and no byte before it.
  bool at_end() { return unread_.empty() && !fill(); }
  bool was_reset() const { return reset_; }

  void end_writing() { ::shutdown(descriptor_, SHUT_WR); }
  void close() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
  }
  void reset() {
    const linger now{1, 0};
    ::setsockopt(descriptor_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close();
  }
  bool open() const { return descriptor_ >= 0; }

 private:
  bool fill() {
    char bytes[65536];
    const auto count = ::recv(descriptor_, bytes, sizeof bytes, 0);
    if (count > 0) {
      unread_.append(bytes, static_cast<std::size_t>(count));
      return true;
    }
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) throw std::runtime_error("nothing came");
    reset_ = count < 0;
    return false;
  }

  int descriptor_;
  std::string unread_;
  bool reset_ = false;
};

// The scripted backend: accepts when the test says so.
class PeerListener {
 public:
  PeerListener() : descriptor_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(descriptor_, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(descriptor_, 64) != 0) {
      throw std::runtime_error("listen");
    }
    ::getsockname(descriptor_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    timeval patience{patience_s, 0};
    ::setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  ~PeerListener() { close(); }
  PeerListener(const PeerListener&) = delete;

  Peer accept() {
    const int accepted = ::accept(descriptor_, nullptr, nullptr);
    if (accepted < 0) throw std::runtime_error("nobody connected");
    return Peer(accepted);
  }
  void close() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
  }
  std::uint16_t port() const { return port_; }

 private:
  int descriptor_;
  std::uint16_t port_ = 0;
};

class IoThread {
 public:
  IoThread() : work_(io_.get_executor()), thread_([this] { io_.run(); }) {}
  ~IoThread() {
    work_.reset();
    thread_.join();
  }

  boost::asio::any_io_executor executor() { return io_.get_executor(); }

  // Runs function() on the I/O thread and waits for it.
  template <class Function>
  auto on(Function function) {
    auto task = std::make_shared<std::packaged_task<decltype(function())()>>(std::move(function));
    boost::asio::post(io_, [task] { (*task)(); });
    return task->get_future().get();
  }
  template <class T>
  std::future<T> begin(Task<T> task) {
    return boost::asio::co_spawn(io_, std::move(task), boost::asio::use_future);
  }
  template <class T>
  T run(Task<T> task) {
    auto future = begin(std::move(task));
    if (future.wait_for(std::chrono::seconds(patience_s)) != std::future_status::ready) {
      throw std::runtime_error("the coroutine did not end");
    }
    return future.get();
  }
  // Until ready() holds on the I/O thread.
  bool wait_for(const std::function<bool()>& ready) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(patience_s);
    while (!on(ready)) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

 private:
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::thread thread_;
};

inline std::string chunk(std::string_view bytes) {
  char size[24];
  std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
  return size + std::string(bytes) + "\r\n";
}

}  // namespace cairn::wire
