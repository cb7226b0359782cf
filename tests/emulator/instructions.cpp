// Warp votes, matches and tensor cores in plain C++. Fragment layouts are those of the PTX manual: for a lane with
// group = lane / 4 and pair = lane % 4, a row of A and D is group or group + 8, a column of B and D is made of pair and
// group.
#include "emulator.h"

namespace fastconv {
namespace {

struct MmaLane {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  float (*widen_bits)(uint16_t);
};

float half_of(const uint32_t* registers, int i, float (*widen_bits)(uint16_t)) {
  return widen_bits(static_cast<uint16_t>(registers[i / 2] >> 16 * (i % 2)));
}

float tf32_of(uint32_t bits) {
  bits &= 0xffffe000u;  // the hardware ignores the rest
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// D [16, 8] += A [16, depth] B [depth, 8], spread over the lanes of the accumulators.
void multiply(void** lanes, const float (&a)[16][16], const float (&b)[16][8], int depth) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
      float sum = static_cast<MmaLane*>(lanes[lane])->d[i];
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      static_cast<MmaLane*>(lanes[lane])->d[i] = sum;
    }
}

void finish_mma_16bit(void** lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<MmaLane*>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4;
    for (int i = 0; i < 8; ++i)
      a[group + (i / 2 % 2 ? 8 : 0)][pair * 2 + i % 2 + (i >= 4 ? 8 : 0)] = half_of(own.a, i, own.widen_bits);
    for (int i = 0; i < 4; ++i) b[pair * 2 + i % 2 + (i >= 2 ? 8 : 0)][group] = half_of(own.b, i, own.widen_bits);
  }
  multiply(lanes, a, b, 16);
}

void finish_mma_tf32(void** lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<MmaLane*>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4;
    for (int i = 0; i < 4; ++i) a[group + (i % 2 ? 8 : 0)][pair + (i >= 2 ? 4 : 0)] = tf32_of(own.a[i]);
    for (int i = 0; i < 2; ++i) b[pair + 4 * i][group] = tf32_of(own.b[i]);
  }
  multiply(lanes, a, b, 8);
}

struct MatricesLane {
  const void* row;
  uint32_t* out;
  bool transposed;
};

void finish_load_matrices(void** lanes) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t values[8][8];
    for (int row = 0; row < 8; ++row)
      std::memcpy(values[row], static_cast<MatricesLane*>(lanes[8 * matrix + row])->row, 16);
    for (int lane = 0; lane < 32; ++lane) {
      auto& own = *static_cast<MatricesLane*>(lanes[lane]);
      const int row = lane / 4, column = lane % 4 * 2;
      const uint32_t low = own.transposed ? values[column][row] : values[row][column];
      const uint32_t high = own.transposed ? values[column + 1][row] : values[row][column + 1];
      own.out[matrix] = low | high << 16;
    }
  }
}

}  // namespace

unsigned emulated_vote(bool holds, unsigned mask, const emulator::Site& site) {
  VoteLane lane{holds, 0};
  emulator::collective(site, mask, &lane, [](void** lanes) {
    unsigned result = 0;
    for (int i = 0; i < 32; ++i)
      if (lanes[i] && static_cast<VoteLane*>(lanes[i])->holds) result |= 1u << i;
    for (int i = 0; i < 32; ++i)
      if (lanes[i]) static_cast<VoteLane*>(lanes[i])->result = result;
  });
  return lane.result;
}

unsigned emulated_match(uint32_t value, unsigned mask, const emulator::Site& site) {
  MatchLane lane{value, 0};
  emulator::collective(site, mask, &lane, [](void** lanes) {
    const auto at = [&](int i) { return static_cast<MatchLane*>(lanes[i]); };
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 32; ++j)
        if (lanes[i] && lanes[j] && at(i)->value == at(j)->value) at(i)->result |= 1u << j;
  });
  return lane.result;
}

float multiply_rounded(float a, float b) { return a * b; }
double multiply_rounded(double a, double b) { return a * b; }

void emulated_mma_16bit(float* d, const uint32_t* a, const uint32_t* b, float (*widen_bits)(uint16_t),
                        const emulator::Site& site) {
  MmaLane lane{d, a, b, widen_bits};
  emulator::collective(site, kFullWarp, &lane, finish_mma_16bit);
}

void emulated_mma_tf32(float* d, const uint32_t* a, const uint32_t* b, const emulator::Site& site) {
  MmaLane lane{d, a, b, nullptr};
  emulator::collective(site, kFullWarp, &lane, finish_mma_tf32);
}

void emulated_load_matrices(uint32_t* out, const void* row, bool transposed, const emulator::Site& site) {
  emulator::check(row, 16, emulator::Access::kRead);
  MatricesLane lane{row, out, transposed};
  emulator::collective(site, kFullWarp, &lane, finish_load_matrices);
}

namespace {
template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace

float widen(bfloat16 value) { return bits_as<float>(static_cast<uint32_t>(value.bits) << 16); }

float widen(float16 value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float sign = value.bits >> 15 ? -1.f : 1.f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.f + static_cast<float>(fraction), exponent - 25)
                          : std::ldexp(static_cast<float>(fraction), -24));
}

// The hardware's NaN is 0x7fff in both types.
void narrow(float value, bfloat16& out) {
  const uint32_t bits = bits_as<uint32_t>(value);
  out.bits = static_cast<uint16_t>(std::isnan(value) ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Rounds at the last place that float16 has at this magnitude; from 65520 on that is infinity.
void narrow(float value, float16& out) {
  const uint16_t sign = static_cast<uint16_t>(bits_as<uint32_t>(value) >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  uint16_t bits = 0x7c00;
  if (std::isnan(value)) {
    out.bits = 0x7fff;
    return;
  }
  if (magnitude < 65520.f) {
    const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
    const float places = std::nearbyint(std::ldexp(magnitude, 10 - exponent));        // 1024 and more where normal
    bits = static_cast<uint16_t>((exponent + 14) * 1024 + static_cast<int>(places));  // a carry moves the exponent on
  }
  out.bits = static_cast<uint16_t>(sign | bits);
}

// To nearest, ties away from zero.
uint32_t to_tf32(float value) {
  if (std::isnan(value)) return 0x7fffffffu;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return std::isfinite(value) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

}  // namespace fastconv
