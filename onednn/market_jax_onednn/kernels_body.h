// The loops of kernels.h; included once for each instruction set, see kernels_*.cc.

#include "vectors.h"

// ---------------------------------------------------------------------------------------------
// Sweeps: an operation on every number of [rows, channels], vectors of channels at a time.
//
// If the channels do not fill vectors, several rows do: the sweep's period is the least common
// multiple of both. An operation is made for one vector of the period, where it can hold
// that vector's coefficients and sums in registers; it is called for each period, and at the end
// adds its sums to memory. Four vectors go through the rows together.

struct Period {
  int64_t rows, channels, length;
  Period(int64_t rows, int64_t channels) : rows(rows), channels(channels), length(channels) {
    while (length % kLanes) length += channels;
  }
  int64_t vectors() const { return length / kLanes; }
};

// Lanes of a vector of channels at position `at` of the period.
INLINE Vector Spread(const float* values, int64_t at, int64_t channels, float absent) {
  if (!values) return Fill(absent);
  at %= channels;
  if (at + kLanes <= channels) return Load(values + at);
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = values[(at + i) % channels];
  return Load(lanes);
}

INLINE void Gather(float* sums, int64_t at, int64_t channels, Vector v) {
  at %= channels;
  if (at + kLanes <= channels) return Store(sums + at, Load(sums + at) + v);
  float lanes[kLanes];
  Store(lanes, v);
  for (int64_t i = 0; i < kLanes; ++i) sums[(at + i) % channels] += lanes[i];
}

template <typename Operation, int64_t count, typename... Arguments>
INLINE void SweepColumns(const Period& p, int64_t at, const Arguments&... arguments) {
  Operation operations[count];
  for (int64_t i = 0; i < count; ++i) {
    operations[i].Begin(at + i * kLanes, p.channels, arguments...);
  }
  const int64_t size = p.rows * p.channels, last = size - size % p.length;
  for (int64_t row = 0; row < last; row += p.length) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < count; ++i) operations[i].Step(row + at + i * kLanes, kLanes);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t offset = last + at + i * kLanes;
    if (offset < size) operations[i].Step(offset, size - offset < kLanes ? size - offset : kLanes);
    operations[i].End(at + i * kLanes, p.channels);
  }
}

template <typename Operation, typename... Arguments>
INLINE void Sweep(int64_t rows, int64_t channels, const Arguments&... arguments) {
  const Period period(rows, channels);
  int64_t at = 0;
  for (; at + 4 * kLanes <= period.length; at += 4 * kLanes) {
    SweepColumns<Operation, 4>(period, at, arguments...);
  }
  for (; at < period.length; at += kLanes) SweepColumns<Operation, 1>(period, at, arguments...);
}

// Calls f<T, kind> for the type and the kind of activation.
#define DISPATCH(type, kind, F, ...)                                                     \
  do {                                                                                   \
    if (type == Type::kFloat32) {                                                        \
      DISPATCH_KIND(float, kind, F, __VA_ARGS__);                                        \
    } else {                                                                             \
      DISPATCH_KIND(Bfloat16, kind, F, __VA_ARGS__);                                     \
    }                                                                                    \
  } while (0)
#define DISPATCH_KIND(T, kind, F, ...)                                                   \
  switch (kind) {                                                                        \
    case Activation::kRelu: F<T, Activation::kRelu>(__VA_ARGS__); break;                 \
    case Activation::kRelu6: F<T, Activation::kRelu6>(__VA_ARGS__); break;               \
    case Activation::kLeakyRelu: F<T, Activation::kLeakyRelu>(__VA_ARGS__); break;       \
    default: F<T, Activation::kNone>(__VA_ARGS__);                                       \
  }

// --- activation(scale * x + shift + residual)

template <typename T, int64_t kind, bool add>
struct FinishOperation {
  const T* x;
  const T* residual;
  T* z;
  Vector scale, shift;
  float slope;
  INLINE void Begin(int64_t at, int64_t channels, const T* x_, const T* residual_, T* z_,
                    const Activation& a) {
    x = x_, residual = residual_, z = z_, slope = a.slope;
    scale = Spread(a.scale, at, channels, 1), shift = Spread(a.shift, at, channels, 0);
  }
  INLINE void Step(int64_t i, int64_t n) {
    Vector u = Load(x + i, n) * scale + shift;
    if constexpr (add) u += Load(residual + i, n);
    Store(z + i, Apply<kind>(u, slope), n);
  }
  INLINE void End(int64_t, int64_t) {}
};

template <typename T, int64_t kind>
void FinishTyped(int64_t rows, int64_t channels, const void* x, const void* residual,
                 const Activation& a, void* z) {
  const T *x_ = static_cast<const T*>(x), *r = static_cast<const T*>(residual);
  T* z_ = static_cast<T*>(z);
  if (residual) {
    Sweep<FinishOperation<T, kind, true>>(rows, channels, x_, r, z_, a);
  } else {
    Sweep<FinishOperation<T, kind, false>>(rows, channels, x_, r, z_, a);
  }
}

void Finish(Type type, int64_t rows, int64_t channels, const void* x, const void* residual,
            const Activation& a, void* z) {
  DISPATCH(type, a.kind, FinishTyped, rows, channels, x, residual, a, z);
}

void Activate(Type type, int64_t rows, int64_t channels, const void* x, const Activation& a,
              void* z) {
  Finish(type, rows, channels, x, nullptr, a, z);
}

void Epilogue(Type type, int64_t rows, int64_t channels, void* y, const float* bias,
              const void* residual, const Activation& a) {
  Activation own = a;
  own.scale = nullptr, own.shift = bias;
  Finish(type, rows, channels, y, residual, own, y);
}

// --- moments

template <typename T>
struct MomentsOperation {
  const T* y;
  float* sums;
  Vector sum = {}, squares = {};
  INLINE void Begin(int64_t, int64_t, const T* y_, float* sums_) { y = y_, sums = sums_; }
  INLINE void Step(int64_t i, int64_t n) {
    const Vector v = Load(y + i, n);
    sum += v, squares += v * v;
  }
  INLINE void End(int64_t at, int64_t channels) {
    Gather(sums, at, channels, sum), Gather(sums + channels, at, channels, squares);
  }
};

template <typename T, int64_t>
void MomentsTyped(int64_t rows, int64_t channels, const void* y, float* sums) {
  Sweep<MomentsOperation<T>>(rows, channels, static_cast<const T*>(y), sums);
}

void Moments(Type type, int64_t rows, int64_t channels, const void* y, float* sums) {
  DISPATCH(type, 0, MomentsTyped, rows, channels, y, sums);
}

// --- the gradient by a convolution's output

template <typename T>
struct OutputGradientOperation {
  const T *gy, *y;
  T* dy;
  float* bias;
  Vector shift, slope, sum = {};
  INLINE void Begin(int64_t at, int64_t channels, const T* gy_, const T* y_, const float* gsums,
                    T* dy_, float* bias_) {
    gy = gy_, y = y_, dy = dy_, bias = bias_;
    shift = Spread(gsums, at, channels, 0);
    slope = Spread(gsums ? gsums + channels : nullptr, at, channels, 0) * 2;
  }
  INLINE void Step(int64_t i, int64_t n) {
    Vector g = Load(gy + i, n);
    if (y) g += shift + slope * Load(y + i, n);
    if (dy) Store(dy + i, g, n);
    sum += n == kLanes ? g : First(g, n);
  }
  INLINE void End(int64_t at, int64_t channels) {
    if (bias) Gather(bias, at, channels, sum);
  }
};

template <typename T, int64_t>
void OutputGradientTyped(int64_t rows, int64_t channels, const void* gy, const void* y,
                         const float* gsums, void* dy, float* bias) {
  Sweep<OutputGradientOperation<T>>(rows, channels, static_cast<const T*>(gy),
                                    static_cast<const T*>(gsums ? y : nullptr), gsums,
                                    static_cast<T*>(dy), bias);
}

void OutputGradient(Type type, int64_t rows, int64_t channels, const void* gy, const void* y,
                    const float* gsums, void* dy, float* bias) {
  DISPATCH(type, 0, OutputGradientTyped, rows, channels, gy, y, gsums, dy, bias);
}

// --- the gradient by a convolution's input, through scale, shift and activation

template <typename T, int64_t kind>
struct InputGradientOperation {
  const T *gz, *x;
  T* gx;
  float* sums;
  Vector scale, shift, by_scale = {}, by_shift = {};
  float slope;
  INLINE void Begin(int64_t at, int64_t channels, const T* gz_, const T* x_, const Activation& a,
                    T* gx_, float* sums_) {
    gz = gz_, x = x_, gx = gx_, sums = sums_, slope = a.slope;
    scale = Spread(a.scale, at, channels, 1), shift = Spread(a.shift, at, channels, 0);
  }
  INLINE void Step(int64_t i, int64_t n) {
    const Vector v = Load(x + i, n);
    const Vector g = Derive<kind>(v * scale + shift, Load(gz + i, n), slope);
    Store(gx + i, g * scale, n);
    by_scale += g * v, by_shift += g;
  }
  INLINE void End(int64_t at, int64_t channels) {
    Gather(sums, at, channels, by_scale), Gather(sums + channels, at, channels, by_shift);
  }
};

template <typename T, int64_t kind>
void InputGradientTyped(int64_t rows, int64_t channels, const void* gz, const void* x,
                        const Activation& a, void* gx, float* sums) {
  Sweep<InputGradientOperation<T, kind>>(rows, channels, static_cast<const T*>(gz),
                                         static_cast<const T*>(x), a, static_cast<T*>(gx), sums);
}

void InputGradient(Type type, int64_t rows, int64_t channels, const void* gz, const void* x,
                   const Activation& a, void* gx, float* sums) {
  DISPATCH(type, a.kind, InputGradientTyped, rows, channels, gz, x, a, gx, sums);
}

// --- the gradients of Finish

template <typename T, int64_t kind>
struct FinishGradientOperation {
  const T *gz, *z, *x;
  T *gx, *gresidual;
  float* sums;
  Vector scale, by_scale = {}, by_shift = {};
  float slope;
  INLINE void Begin(int64_t at, int64_t channels, const T* gz_, const T* z_, const T* x_,
                    const Activation& a, T* gx_, T* gresidual_, float* sums_) {
    gz = gz_, z = z_, x = x_, gx = gx_, gresidual = gresidual_, sums = sums_, slope = a.slope;
    scale = Spread(a.scale, at, channels, 1);
  }
  INLINE void Step(int64_t i, int64_t n) {
    Vector g = Load(gz + i, n);
    if constexpr (kind != Activation::kNone) g = Derive<kind>(Load(z + i, n), g, slope);
    Store(gx + i, g * scale, n);
    if (gresidual) Store(gresidual + i, g, n);
    by_scale += g * Load(x + i, n), by_shift += g;
  }
  INLINE void End(int64_t at, int64_t channels) {
    Gather(sums, at, channels, by_scale), Gather(sums + channels, at, channels, by_shift);
  }
};

template <typename T, int64_t kind>
void FinishGradientTyped(int64_t rows, int64_t channels, const void* gz, const void* z,
                         const void* x, const Activation& a, void* gx, void* gresidual,
                         float* sums) {
  Sweep<FinishGradientOperation<T, kind>>(
      rows, channels, static_cast<const T*>(gz), static_cast<const T*>(z),
      static_cast<const T*>(x), a, static_cast<T*>(gx), static_cast<T*>(gresidual), sums);
}

void FinishGradient(Type type, int64_t rows, int64_t channels, const void* gz, const void* z,
                    const void* x, const Activation& a, void* gx, void* gresidual, float* sums) {
  DISPATCH(type, a.kind, FinishGradientTyped, rows, channels, gz, z, x, a, gx, gresidual, sums);
}

#include "depthwise.h"

const Kernels kTable = {Activate, Moments, OutputGradient, InputGradient, Epilogue, Finish,
                        FinishGradient, DepthwiseForward, DepthwiseBackward, DepthwiseScratch,
                        NAME};
