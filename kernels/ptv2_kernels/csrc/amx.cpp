// In a file of its own, as pairs.cpp is: only these functions may use the instructions.
//
// A block of C has up to 2 x 2 tiles of 16 x 16 sums, which with two tiles of A and two of B are all
// eight registers. B in pairs over its depth is what the instruction wants; a transposed A is
// turned in scratch, and what is left of a depth that is no multiple of 16 pairs is copied there
// and followed by zeros.
#include "amx.h"

#if defined(PTV2_HAS_AMX)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#define PTV2_TARGET_AMX __attribute__((target("avx512f,amx-tile,amx-bf16")))

namespace ptv2 {
namespace {

constexpr int64_t kTile = 16;  // rows and columns of a tile of C, and pairs of its depth
constexpr int64_t kBlock = 2 * kTile;
constexpr int64_t kTileSize = kTile * kTile;
constexpr int64_t kSteps = kAmxDepth / kTile;

struct alignas(64) Config {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Stores before it are in memory, also those to `memory`, and loads after it come from there: not
// every compiler's intrinsics say that tiles are loaded from memory and stored to it.
inline void settle(const void* memory) {
  asm volatile("" ::"r"(memory) : "memory");
}

// Tiles of A or B: element (row, column) of tile t in step s is at s * step + t * tile + row * stride
// + column.
struct Tiles {
  const uint32_t* data;
  int64_t stride;
  int64_t step;
  int64_t tile;
};

// The tiles in registers 0 to 3 (2 x 2, rows first) += A B over some steps of the depth.
template <int kRows, int kColumns>
PTV2_TARGET_AMX inline void add_products(const Tiles& a, const Tiles& b, int64_t steps) {
  const int64_t a_bytes = a.stride * 4, b_bytes = b.stride * 4;
  for (int64_t step = 0; step < steps; ++step) {
    const uint32_t* left = a.data + step * a.step;
    const uint32_t* right = b.data + step * b.step;
    _tile_loadd(4, left, a_bytes);
    _tile_loadd(6, right, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (kColumns == 2) {
      _tile_loadd(7, right + b.tile, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kRows == 2) {
      _tile_loadd(5, left + a.tile, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (kRows == 2 && kColumns == 2) {
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

struct Sums {
  alignas(64) float values[kBlock][kBlock];
};

// A block's sums: whole steps of the depth, then the step of what is left, if there is one.
template <int kRows, int kColumns>
PTV2_TARGET_AMX void block_sums(
    Sums& sums, const Tiles& a, const Tiles& b, int64_t steps, const Tiles& last_a,
    const Tiles& last_b, bool last) {
  settle(&sums);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  add_products<kRows, kColumns>(a, b, steps);
  if (last) {
    add_products<kRows, kColumns>(last_a, last_b, 1);
  }
  constexpr int64_t bytes = kBlock * 4;
  _tile_stored(0, &sums.values[0][0], bytes);
  if (kColumns == 2) {
    _tile_stored(1, &sums.values[0][kTile], bytes);
  }
  if (kRows == 2) {
    _tile_stored(2, &sums.values[kTile][0], bytes);
  }
  if (kRows == 2 && kColumns == 2) {
    _tile_stored(3, &sums.values[kTile][kTile], bytes);
  }
  settle(&sums);
}

// dst (16, 16) = src (16, 16)^T, whose rows from `count` on count as zeros.
PTV2_TARGET_AMX void transpose_tile(uint32_t* dst, const uint32_t* src, int64_t stride, int64_t count) {
  __m512i rows[kTile];
  for (int64_t i = 0; i < kTile; ++i) {
    rows[i] = i < count ? _mm512_loadu_si512(src + i * stride) : _mm512_setzero_si512();
  }
  for (int64_t i = 0; i < kTile; i += 4) {  // 4 x 4 within the four quarters of a vector
    const __m512i a = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    const __m512i b = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(rows[i + 2], rows[i + 3]);
    const __m512i d = _mm512_unpackhi_epi32(rows[i + 2], rows[i + 3]);
    rows[i] = _mm512_unpacklo_epi64(a, c);
    rows[i + 1] = _mm512_unpackhi_epi64(a, c);
    rows[i + 2] = _mm512_unpacklo_epi64(b, d);
    rows[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
  for (int64_t i = 0; i < 4; ++i) {  // 4 x 4 of the quarters
    const __m512i a = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
    _mm512_store_si512(dst + i * kTile, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_store_si512(dst + (i + 4) * kTile, _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_store_si512(dst + (i + 8) * kTile, _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_store_si512(dst + (i + 12) * kTile, _mm512_shuffle_i32x4(b, d, 0xdd));
  }
}

// C (rows, columns) = factor (sums + C), where C counts only if `accumulate`.
PTV2_TARGET_AMX void store_block(
    float* c, int64_t c_stride, const Sums& sums, int64_t rows, int64_t columns, bool accumulate,
    float factor) {
  const __m512 times = _mm512_set1_ps(factor);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; j += kTile) {
      __m512 sum = _mm512_load_ps(&sums.values[i][j]);
      if (accumulate) {
        sum = _mm512_add_ps(sum, _mm512_loadu_ps(c + i * c_stride + j));
      }
      _mm512_storeu_ps(c + i * c_stride + j, _mm512_mul_ps(sum, times));
    }
  }
}

// All eight registers are whole tiles.
PTV2_TARGET_AMX void configure() {
  Config config;
  std::fill_n(config.row_bytes, 8, static_cast<uint16_t>(kTile * 4));
  std::fill_n(config.rows, 8, static_cast<uint8_t>(kTile));
  settle(&config);
  _tile_loadconfig(&config);
}

PTV2_TARGET_AMX void release() {
  _tile_release();
}

// Ask the system for AMX's registers, which it gives to a process that wants them.
bool request() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

bool is_wanted() {
  const char* value = std::getenv("PTV2_AMX");
  return value == nullptr || std::strcmp(value, "0") != 0;
}

}  // namespace

bool has_amx() {
  static const bool found = is_wanted() && __builtin_cpu_supports("amx-bf16") && request();
  return found;
}

AmxSession::AmxSession() {
  configure();
}

AmxSession::~AmxSession() {
  release();
}

PTV2_TARGET_AMX void multiply_amx(
    bool transposed, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
    float* c, int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, float factor) {
  alignas(64) uint32_t turned[kSteps * 2 * kTileSize];
  alignas(64) uint32_t rest_a[2 * kTileSize] = {};
  alignas(64) uint32_t rest_b[kTile * kBlock] = {};
  Sums sums;
  const int64_t rest = depth % kTile, steps = depth / kTile;
  for (int64_t i = 0; i < rows; i += kBlock) {
    const int64_t height = std::min(kBlock, rows - i);
    const bool tall = height > kTile;
    Tiles of_a{a + i * a_stride, a_stride, kTile, kTile * a_stride};
    Tiles last_a{rest_a, kTile, 0, kTileSize};
    if (transposed) {
      for (int64_t k = 0; k < depth; k += kTile) {
        for (int64_t t = 0; t < (tall ? 2 : 1); ++t) {
          transpose_tile(
              turned + (k / kTile * 2 + t) * kTileSize, a + k * a_stride + i + t * kTile, a_stride,
              depth - k);
        }
      }
      of_a = {turned, kTile, 2 * kTileSize, kTileSize};
      last_a = of_a;
      last_a.data += steps * of_a.step;
    } else if (rest > 0) {
      for (int64_t r = 0; r < height; ++r) {
        std::copy_n(a + (i + r) * a_stride + steps * kTile, rest, rest_a + r * kTile);
      }
    }
    for (int64_t j = 0; j < columns; j += kBlock) {
      const int64_t width = std::min(kBlock, columns - j);
      const bool wide = width > kTile;
      for (int64_t r = 0; r < rest; ++r) {
        std::copy_n(b + (steps * kTile + r) * b_stride + j, width, rest_b + r * kBlock);
      }
      const Tiles of_b{b + j, b_stride, kTile * b_stride, kTile};
      const Tiles last_b{rest_b, kBlock, 0, kTile};
      const auto add = tall ? (wide ? block_sums<2, 2> : block_sums<2, 1>)
                            : (wide ? block_sums<1, 2> : block_sums<1, 1>);
      add(sums, of_a, of_b, steps, last_a, last_b, rest > 0);
      store_block(c + i * c_stride + j, c_stride, sums, height, width, accumulate, factor);
    }
  }
}

}  // namespace ptv2

#endif
