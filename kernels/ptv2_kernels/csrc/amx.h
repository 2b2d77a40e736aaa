// Products of bf16 in tiles: AMX multiplies 16 x 32 numbers by 32 x 16 in one instruction.
// Only in the build for AVX-512 on Linux, by compilers that know AMX.
#pragma once

#include <cstdint>

#if defined(CPU_CAPABILITY_AVX512) && defined(__linux__)
#if (defined(__clang__) && __clang_major__ >= 19) || (!defined(__clang__) && __GNUC__ >= 11)
#define PTV2_HAS_AMX
#endif
#endif

namespace ptv2 {

constexpr int64_t kAmxDepth = 64;  // how deep a transposed A may be, in pairs; others have no limit

// Whether this processor has it and the system lets the process use it. PTV2_AMX=0 in the environment
// of the first call says no.
bool has_amx();

// While one is there, its thread may call multiply_amx; AMX's registers are this thread's alone.
class AmxSession {
 public:
  AmxSession();
  ~AmxSession();
  AmxSession(const AmxSession&) = delete;
  AmxSession& operator=(const AmxSession&) = delete;
};

// What multiply_pairs does. `columns` is a multiple of 16. Rows of A up to a multiple of
// 16 are read, and only `rows` of C written.
void multiply_amx(
    bool transposed, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
    float* c, int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, float factor);

}  // namespace ptv2
