// A register of float32 numbers at a time, from and to float32 and bfloat16 memory.
//
// Included by kernels_body.h within a namespace for each instruction set, which says how many
// bytes a register has (kBytes).

typedef float Vector __attribute__((vector_size(kBytes)));
typedef uint32_t Bits __attribute__((vector_size(kBytes)));
typedef int32_t Mask __attribute__((vector_size(kBytes)));
typedef uint16_t Halves __attribute__((vector_size(kBytes / 2)));
constexpr int64_t kLanes = kBytes / 4;

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

struct Bfloat16 {
  uint16_t bits;
};

INLINE Vector Fill(float value) { return Vector{} + value; }

INLINE Vector Load(const float* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

INLINE Vector Load(const Bfloat16* p) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  return (Vector)(__builtin_convertvector(h, Bits) << 16);
}

INLINE void Store(float* p, Vector v) { __builtin_memcpy(p, &v, sizeof v); }

// To the nearest, ties to even; what is not a number stays so.
INLINE Halves Round(Vector v) {
  const Bits bits = (Bits)v, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const Mask fine = v == v;
  const Bits chosen = (rounded & (Bits)fine) | (0x7fc00000u & ~(Bits)fine);
  return __builtin_convertvector(chosen >> 16, Halves);
}

INLINE void Store(Bfloat16* p, Vector v) {
  const Halves h = Round(v);
  __builtin_memcpy(p, &h, sizeof h);
}

// The first n lanes; the others are 0.
template <typename T>
INLINE Vector Load(const T* p, int64_t n) {
  if (n == kLanes) return Load(p);
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return Load(lanes);
}

template <typename T>
INLINE void Store(T* p, Vector v, int64_t n) {
  if (n == kLanes) return Store(p, v);
  T lanes[kLanes];
  Store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// The first n lanes; the others are 0.
INLINE Vector First(Vector v, int64_t n) {
  float lanes[kLanes];
  Store(lanes, v);
  return Load(lanes, n);
}

INLINE Vector Select(Mask mask, Vector a, Vector b) {
  return (Vector)(((Bits)mask & (Bits)a) | (~(Bits)mask & (Bits)b));
}

// What is not a number stays so, as in XLA.
template <int64_t kind>
INLINE Vector Apply(Vector u, float slope) {
  if constexpr (kind == Activation::kRelu) return Select(u < 0, Vector{}, u);
  if constexpr (kind == Activation::kRelu6) {
    return Select(u < 0, Vector{}, Select(u > 6, Fill(6), u));
  }
  if constexpr (kind == Activation::kLeakyRelu) return Select(u < 0, u * slope, u);
  return u;
}

// g times the derivative at u; u may as well be the activation's output.
template <int64_t kind>
INLINE Vector Derive(Vector u, Vector g, float slope) {
  if constexpr (kind == Activation::kRelu) return Select(u > 0, g, Vector{});
  if constexpr (kind == Activation::kRelu6) return Select((u > 0) & (u < 6), g, Vector{});
  if constexpr (kind == Activation::kLeakyRelu) return Select(u < 0, g * slope, g);
  return g;
}
