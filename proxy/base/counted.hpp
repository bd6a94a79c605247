// Counts something towards a total while it lives.
#pragma once

namespace cairn {

template <class Number>
class [[nodiscard]] Counted {
 public:
  explicit Counted(Number& total, Number amount = 1) : total_(total), amount_(amount) { total_ += amount_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  ~Counted() { total_ -= amount_; }

 private:
  Number& total_;
  Number amount_;
};

}  // namespace cairn
