// Depthwise convolutions with square windows of 3 or 5 and strides of 1 or 2.
//
// Included by kernels_body.h within a namespace for each instruction set. A call does some rows of
// one image. What it reads is first brought into scratch, as float32, with its activation applied,
// zeros around it and the channels filled up to whole vectors; a block of channels at a time, so
// that it stays in the first cache.

INLINE int64_t FloorDivide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
INLINE int64_t Padded(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }
INLINE int64_t Lanes(int64_t channels, int64_t v) {
  return channels - v < kLanes ? channels - v : kLanes;
}

INLINE void Add(float* sums, Vector v, int64_t n) { Store(sums, Load(sums, n) + v, n); }

// One row of pixels into scratch, activated: the block's channels of pixels so far apart.
template <typename T, int64_t kind>
INLINE void ReadRow(const T* x, int64_t pixels, int64_t apart, int64_t block, const Activation& a,
                    float* out) {
  const int64_t padded = Padded(block);
  for (int64_t c = 0; c < pixels; ++c) {
    for (int64_t v = 0; v < block; v += kLanes) {
      const int64_t n = Lanes(block, v);
      Vector u = Load(x + c * apart + v, n);
      if (a.scale) u = u * Load(a.scale + v, n) + Load(a.shift + v, n);
      Store(out + c * padded + v, Apply<kind>(u, a.slope));
    }
  }
}

INLINE void Zero(float* out, int64_t count) { __builtin_memset(out, 0, count * sizeof(float)); }

// --- forward

template <int n>
struct Constant {
  static constexpr int value = n;
};

// Some neighbouring pixels of the output: each number of the input is loaded once for all of them.
template <int k, int s, int count>
INLINE void FilterRow(const float* x, int64_t padded, const Vector* weights, Vector* values) {
#pragma GCC unroll 20
  for (int t = 0; t < (count - 1) * s + k; ++t) {
    const Vector here = Load(x + t * padded);
#pragma GCC unroll 5
    for (int j = 0; j < k; ++j) {
      const int p = (t - j) / s;
      if (t - j >= 0 && (t - j) % s == 0 && p < count) values[p] += weights[j] * here;
    }
  }
}

template <int k, int s, int count>
INLINE void FilterPixels(const float* x, int64_t line, int64_t padded, const float* w,
                         int64_t channels, int64_t n, const Vector* kept, Vector* values) {
  if constexpr (k == 3) {  // all weights stay in registers
    FilterRow<k, s, count>(x, padded, kept, values);
    FilterRow<k, s, count>(x + line, padded, kept + 3, values);
    FilterRow<k, s, count>(x + 2 * line, padded, kept + 6, values);
  } else {
    for (int i = 0; i < k; ++i) {
      Vector weights[k];
#pragma GCC unroll 5
      for (int j = 0; j < k; ++j) weights[j] = Load(w + (i * k + j) * channels, n);
      FilterRow<k, s, count>(x + i * line, padded, weights, values);
    }
  }
}

template <typename T, int64_t kind, int k, int s>
void DepthwiseForwardTyped(const Depthwise& d, int64_t first, int64_t last, const T* x,
                           const Activation& before, const float* w, const float* bias,
                           const T* residual, const Activation& after, T* y, float* sums,
                           float* scratch) {
  const int64_t padded = Padded(d.block), wide = (d.columns - 1) * s + k;
  const int64_t top = first * s - d.before[0], left = d.before[1], line = wide * padded;
  const int64_t inside = d.width < wide - left ? d.width : wide - left;
  for (int64_t r = 0; r < (last - first - 1) * s + k; ++r) {
    float* row = scratch + r * line;
    if (top + r < 0 || top + r >= d.height) {
      Zero(row, line);
      continue;
    }
    Zero(row, left * padded);
    ReadRow<T, kind>(x + (top + r) * d.width * d.channels, inside, d.channels, d.block, before,
                     row + left * padded);
    Zero(row + (left + inside) * padded, (wide - left - inside) * padded);
  }
  for (int64_t o = first; o < last; ++o) {
    const float* from = scratch + (o - first) * s * line;
    for (int64_t v = 0; v < d.block; v += kLanes) {
      const int64_t n = Lanes(d.block, v);
      Vector kept[9], sum = {}, squares = {};
      for (int i = 0; i < 9; ++i) kept[i] = Load(w + i * d.channels + v, n);
      const Vector shift = bias ? Load(bias + v, n) : Vector{};
      const auto put = [&](int64_t q, Vector value) INLINE_LAMBDA {
        const int64_t at = (o * d.columns + q) * d.channels + v;
        value += shift;
        if (residual) value += Load(residual + at, n);
        switch (after.kind) {
          case Activation::kRelu: value = Apply<Activation::kRelu>(value, 0); break;
          case Activation::kRelu6: value = Apply<Activation::kRelu6>(value, 0); break;
          case Activation::kLeakyRelu:
            value = Apply<Activation::kLeakyRelu>(value, after.slope);
            break;
          default: break;
        }
        Store(y + at, value, n);
        if (sums) {
          value = Load(y + at, n);
          sum += value, squares += value * value;
        }
      };
      int64_t q = 0;
      const auto put_all = [&](auto pixels) INLINE_LAMBDA {
        constexpr int count = decltype(pixels)::value;
        for (; q + count <= d.columns; q += count) {
          Vector values[count] = {};
          FilterPixels<k, s, count>(from + q * s * padded + v, line, padded, w + v, d.channels, n,
                                    kept, values);
          for (int p = 0; p < count; ++p) put(q + p, values[p]);
        }
      };
      if constexpr (kRegisters > 16) put_all(Constant<8>());
      put_all(Constant<4>()), put_all(Constant<1>());
      if (sums) Add(sums + v, sum, n), Add(sums + d.channels + v, squares, n);
    }
  }
}

// --- backward

template <typename T>
INLINE void ReadGradient(const T* gy, const T* y, int64_t pixels, int64_t channels, int64_t block,
                         const float* gsums, float* out) {
  const int64_t padded = Padded(block);
  for (int64_t c = 0; c < pixels; ++c) {
    for (int64_t v = 0; v < block; v += kLanes) {
      const int64_t n = Lanes(block, v), at = c * channels + v;
      Vector g = Load(gy + at, n);
      if (gsums) {
        g += Load(gsums + v, n) + 2 * Load(gsums + channels + v, n) * Load(y + at, n);
      }
      Store(out + c * padded + v, g);
    }
  }
}

// What row i of the window contributes to a row of gz and to its own weights' gradient, at the
// columns of x from `column` on in steps of s: those that see the window's columns j, j + s, ...
template <int k, int s, int j>
INLINE void TapRow(int64_t column, int64_t width, int64_t padded, const float* dy,
                   const float* z, const float* w, int64_t channels, int64_t n, float* gz,
                   float* gw) {
  constexpr int taps = (k - j + s - 1) / s;
  Vector weights[taps], gradients[taps] = {};
#pragma GCC unroll 5
  for (int t = 0; t < taps; ++t) weights[t] = Load(w + (j + t * s) * channels, n);
  for (int64_t c = column; c < width; c += s, dy += padded) {
    const Vector here = Load(z + c * padded);
    Vector g = Load(gz + c * padded);
#pragma GCC unroll 5
    for (int t = 0; t < taps; ++t) {  // the window's next column is the output's previous one
      const Vector d = Load(dy - t * padded);
      g += weights[t] * d, gradients[t] += here * d;
    }
    Store(gz + c * padded, g);
  }
#pragma GCC unroll 5
  for (int t = 0; t < taps; ++t) Add(gw + (j + t * s) * channels, gradients[t], n);
}

template <typename T, int64_t kind, int k, int s>
void DepthwiseBackwardTyped(const Depthwise& d, int64_t first, int64_t last, const T* x,
                            const Activation& before, const float* w, const T* y, const T* gy,
                            const float* gsums, T* gx, float* sums, float* gw, float* scratch) {
  const int64_t channels = d.channels, padded = Padded(d.block), top = d.before[0];
  int64_t from = FloorDivide(first + top - (k - 1) + s - 1, s), to = (last - 1 + top) / s + 1;
  from = from < 0 ? 0 : from, to = to > d.rows ? d.rows : to;
  // columns of dy that columns of x see, beyond the map too
  const int64_t left = -FloorDivide(d.before[1] - (k - 1), s);
  const int64_t seen = (d.width - 1 + d.before[1]) / s + 1;
  const int64_t wide = left + (seen > d.columns ? seen : d.columns), line = wide * padded;
  float *z = scratch, *gz = z + d.width * padded, *dy = gz + d.width * padded;
  for (int64_t o = from; o < to; ++o) {
    float* row = dy + (o - from) * line;
    Zero(row, left * padded);
    ReadGradient(gy + o * d.columns * channels, y + o * d.columns * channels, d.columns, channels,
                 d.block, gsums, row + left * padded);
    Zero(row + (left + d.columns) * padded, (wide - left - d.columns) * padded);
  }
  for (int64_t r = first; r < last; ++r) {
    const T* row = x + r * d.width * channels;
    ReadRow<T, kind>(row, d.width, channels, d.block, before, z);
    Zero(gz, d.width * padded);
    for (int i = 0; i < k; ++i) {
      const int64_t o = FloorDivide(r + top - i, s);
      if (o * s != r + top - i || o < from || o >= to) continue;
      for (int64_t v = 0; v < d.block; v += kLanes) {
        const int64_t n = Lanes(d.block, v);
        const float *weights = w + i * k * channels + v, *seen_row = dy + (o - from) * line + v;
        float* gradients = gw + i * k * channels + v;
        for (int64_t c = 0; c < s && c < d.width; ++c) {
          const int64_t j = (c + d.before[1]) % s, q = left + (c + d.before[1] - j) / s;
          if (j == 0) {
            TapRow<k, s, 0>(c, d.width, padded, seen_row + q * padded, z + v, weights, channels, n,
                            gz + v, gradients);
          } else {
            TapRow<k, s, s - 1>(c, d.width, padded, seen_row + q * padded, z + v, weights,
                                channels, n, gz + v, gradients);
          }
        }
      }
    }
    if (!gx) continue;
    for (int64_t v = 0; v < d.block; v += kLanes) {
      const int64_t n = Lanes(d.block, v);
      const Vector scale = before.scale ? Load(before.scale + v, n) : Fill(1);
      const Vector shift = before.scale ? Load(before.shift + v, n) : Vector{};
      Vector by_scale = {}, by_shift = {};
      for (int64_t c = 0; c < d.width; ++c) {
        const int64_t at = c * channels + v;
        const Vector here = Load(row + at, n);
        const Vector g = Derive<kind>(here * scale + shift, Load(gz + c * padded + v), before.slope);
        Store(gx + r * d.width * channels + at, g * scale, n);
        by_scale += g * here, by_shift += g;
      }
      if (sums) Add(sums + v, by_scale, n), Add(sums + channels + v, by_shift, n);
    }
  }
}

// --- for every type, activation, window and stride

template <typename T, int64_t kind, typename Call>
INLINE void ForWindow(const Depthwise& d, const Call& call) {
  const bool strided = d.strides[0] == 2;
  if (d.window[0] == 3) {
    strided ? call.template operator()<T, kind, 3, 2>() : call.template operator()<T, kind, 3, 1>();
  } else {
    strided ? call.template operator()<T, kind, 5, 2>() : call.template operator()<T, kind, 5, 1>();
  }
}

struct ForwardCall {
  const Depthwise& d;
  int64_t first, last;
  const void* x;
  const Activation& before;
  const float *w, *bias;
  const void* residual;
  const Activation& after;
  void* y;
  float *sums, *scratch;
  template <typename T, int64_t kind, int k, int s>
  void operator()() const {
    DepthwiseForwardTyped<T, kind, k, s>(d, first, last, static_cast<const T*>(x), before, w, bias,
                                         static_cast<const T*>(residual), after,
                                         static_cast<T*>(y), sums, scratch);
  }
};

struct BackwardCall {
  const Depthwise& d;
  int64_t first, last;
  const void* x;
  const Activation& before;
  const float* w;
  const void *y, *gy;
  const float* gsums;
  void* gx;
  float *sums, *gw, *scratch;
  template <typename T, int64_t kind, int k, int s>
  void operator()() const {
    DepthwiseBackwardTyped<T, kind, k, s>(d, first, last, static_cast<const T*>(x), before, w,
                                          static_cast<const T*>(y), static_cast<const T*>(gy),
                                          gsums, static_cast<T*>(gx), sums, gw, scratch);
  }
};

void DepthwiseForward(Type type, const Depthwise& d, int64_t first, int64_t last, const void* x,
                      const Activation& before, const float* w, const float* bias,
                      const void* residual, const Activation& after, void* y, float* sums,
                      float* scratch) {
  const ForwardCall call{d, first, last, x, before, w, bias, residual, after, y, sums, scratch};
  DISPATCH(type, before.kind, ForWindow, d, call);
}

void DepthwiseBackward(Type type, const Depthwise& d, int64_t first, int64_t last, const void* x,
                       const Activation& before, const float* w, const void* y, const void* gy,
                       const float* gsums, void* gx, float* sums, float* gw, float* scratch) {
  const BackwardCall call{d, first, last, x, before, w, y, gy, gsums, gx, sums, gw, scratch};
  DISPATCH(type, before.kind, ForWindow, d, call);
}

int64_t DepthwiseScratch(const Depthwise& d, int64_t rows) {
  const int64_t padded = Padded(d.block), k = d.window[0], s = d.strides[0];
  const int64_t forward = ((rows - 1) * s + k) * ((d.columns - 1) * s + k);
  const int64_t wide = d.columns + 2 * k + (d.width + d.before[1]) / s;
  const int64_t backward = 2 * d.width + ((rows + k) / s + 2) * wide;
  return (forward > backward ? forward : backward) * padded;
}
