// Vectors of floats, as wide as the instruction set this file is compiled for.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

namespace ptv2 {

using Vec = at::vec::Vectorized<float>;
using IntVec = at::vec::Vectorized<int32_t>;

constexpr int64_t kLanes = Vec::size();
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// 2^x for x <= 127, to 1e-7; 0 below 2^-126; NaN stays NaN.
//
// x = n + f with |f| <= 1/2: a minimax polynomial for 2^f, and n as an exponent's bits.
inline Vec exp2(Vec x) {
  x = at::vec::maximum(x, Vec(-127.0f));
  const Vec n = x.round();
  const Vec f = x - n;
  Vec p(1.32765e-3f);
  p = at::vec::fmadd(p, f, Vec(9.67554e-3f));
  p = at::vec::fmadd(p, f, Vec(5.550713e-2f));
  p = at::vec::fmadd(p, f, Vec(2.402212e-1f));
  p = at::vec::fmadd(p, f, Vec(6.9314697e-1f));
  p = at::vec::fmadd(p, f, Vec(1.0000001f));
  const IntVec exponent = at::vec::convert_to_int_of_same_size(n) + IntVec(127);
  return p * at::vec::cast<float>(exponent << IntVec(23));
}

// kLanes bf16 or `count` of them, rounded to nearest even; NaN stays NaN.
inline void store_bf16(uint16_t* dst, Vec values, int64_t count = kLanes) {
  const IntVec bits = at::vec::cast<int32_t>(values);
  const IntVec odd = (bits >> IntVec(16)) & IntVec(1);
  const IntVec is_number = at::vec::cast<int32_t>(values == values);
  int32_t rounded[kLanes];
  IntVec::blendv(IntVec(0x7FC00000), bits + IntVec(0x7FFF) + odd, is_number).store(rounded);
  for (int64_t i = 0; i < count; ++i) {
    dst[i] = static_cast<uint16_t>(rounded[i] >> 16);
  }
}

// Floats on a cache line's boundary, handed out piece by piece; they start as zeros.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : memory_(static_cast<float*>(std::aligned_alloc(64, bytes(floats)))), next_(memory_.get()) {
    if (memory_ == nullptr) {
      throw std::bad_alloc();
    }
    std::memset(memory_.get(), 0, bytes(floats));
  }

  template <typename Element = float>
  Element* take(int64_t count) {
    static_assert(sizeof(Element) == sizeof(float));
    float* piece = next_;
    next_ += size(count);
    return reinterpret_cast<Element*>(piece);
  }

  float* begin() const { return memory_.get(); }

  // What a piece takes of the whole.
  static int64_t size(int64_t floats) { return round_up(floats, 16); }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };

  static size_t bytes(int64_t floats) {
    return static_cast<size_t>(size(floats < 1 ? 1 : floats)) * sizeof(float);
  }

  std::unique_ptr<float, Free> memory_;
  float* next_;
};

}  // namespace ptv2
