// An inverted residual in inference: 1x1, depthwise, 1x1.

#include "call.h"

namespace market_jax {
namespace {

// The filter, for rows of an image; rows are counted from the image's first, which `x` and `y` may
// not hold.
void Filter(const Call& call, const Depthwise& d, int64_t first, int64_t last, const void* x,
            const float* w, const float* bias, void* y, int64_t channels) {
  float* scratch =
      Workspace::Floats(Workspace::kInput, call.kernels.depthwise_scratch(d, last - first));
  for (int64_t channel = 0; channel < channels; channel += d.block) {
    Depthwise own = d;
    own.block = std::min(own.block, channels - channel);
    call.kernels.depthwise(call.type, own, first, last, Offset(x, channel, call.type), {},
                           w + channel, bias + channel, nullptr, call.after,
                           Offset(y, channel, call.type), nullptr, scratch);
  }
}

// Few images, of small maps: each thread has some of the wide map's channels.
void RunBlockByChannels(const Call& call, int64_t narrow, const BlockBuffers& b, int64_t slim) {
  const Geometry& g = call.g;
  const int64_t wide = g.channels, splits = std::min(call.threads(), Ceil(wide, 64));
  const int64_t width = Ceil(Ceil(wide, splits), 16) * 16;
  const int64_t pixels = g.images * g.height * g.width, results = g.images * g.rows * g.columns;
  Sums sums(Workspace::kParts, splits, results * slim);
  ParallelFor(call.pool, splits, [&](int64_t split) {
    const int64_t channel = split * width, own = std::min(width, wide - channel);
    if (own <= 0) return;
    float* widened = Workspace::Floats(Workspace::kWide, pixels * own + 16);
    float* filtered = Workspace::Floats(Workspace::kFiltered, results * own + 16);
    Multiply(call.type, pixels, narrow, own, {b.x, narrow, 1},
             {Offset(b.expand, channel, call.type), wide, 1}, {widened, own, 1},
             {b.expand_bias + channel, nullptr, call.before.kind, call.before.slope});
    Depthwise d = Strips(call, g.rows).d;
    d.channels = own;
    // the weights of a window's cells are `wide` apart: those of these channels, side by side
    const int64_t cells = g.window[0] * g.window[1];
    float* w = Workspace::Floats(Workspace::kWeights, cells * own);
    for (int64_t cell = 0; cell < cells; ++cell) {
      std::memcpy(w + cell * own, b.filter + cell * wide + channel, own * sizeof(float));
    }
    for (int64_t image = 0; image < g.images; ++image) {
      Filter(call, d, 0, g.rows, widened + image * g.height * g.width * own, w,
             b.filter_bias + channel, filtered + image * g.rows * g.columns * own, own);
    }
    MultiplyAndAdd(call.type, results, own, slim, {filtered, own, 1},
                   {Offset(b.project, channel * slim, call.type), slim, 1},
                   {sums.Part(split), slim, 1});
  });
  call.kernels.finish(call.type, results, slim, sums.Total(call.pool), b.residual,
                      {nullptr, b.project_bias}, b.y);
}

}  // namespace

// A strip of an image goes through all three: what is between them stays in the cache. The rows
// that two strips of the filter's input share are widened twice. Without an expansion x is wide.
void RunBlock(const Call& call, int64_t narrow, const BlockBuffers& b, int64_t slim) {
  const Geometry& g = call.g;  // of the filter
  const Type type = call.type;
  const int64_t wide = g.channels, k = g.window[0], s = g.strides[0];
  const int64_t pixels = g.images * g.height * g.width;
  if (b.expand && g.images < call.threads() && type == Type::kFloat32 && pixels < narrow + slim) {
    return RunBlockByChannels(call, narrow, b, slim);
  }
  const int64_t fit = std::max<int64_t>(kCache / (Size(type) * g.width * wide * s), 4);
  int64_t pieces_of_image = Ceil(g.rows, fit);
  if (g.images < call.threads()) {  // as many for each thread
    pieces_of_image = Ceil(pieces_of_image, call.threads()) * call.threads();
  }
  const int64_t strip = std::max<int64_t>(Ceil(g.rows, pieces_of_image), 1);
  const int64_t count = Ceil(g.rows, strip), seen = (strip - 1) * s + k;
  Strips strips(call, g.rows);
  ForParts(call.pool, g.images * count, call.parts(g.images * count), [&](int64_t, int64_t first,
                                                                          int64_t last) {
    const int64_t line = g.width * wide, filtered_line = g.columns * wide;
    void* widened = nullptr;
    if (b.expand) widened = Workspace::Get(Workspace::kWide, seen * line * Size(type) + 64);
    void* filtered = Workspace::Get(Workspace::kFiltered, strip * filtered_line * Size(type) + 64);
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t image = piece / count, row = piece % count * strip;
      const int64_t end = std::min(row + strip, g.rows), pixels = (end - row) * g.columns;
      const int64_t from = std::max<int64_t>(row * s - g.before[0], 0);
      const int64_t to = std::min((end - 1) * s - g.before[0] + k, g.height);
      const int64_t in = (image * g.height + from) * g.width * narrow;
      const void* seen_from = Offset(b.x, in - from * line, type);
      if (b.expand) {
        Multiply(type, (to - from) * g.width, narrow, wide, {Offset(b.x, in, type), narrow, 1},
                 {b.expand, wide, 1}, {widened, wide, 1},
                 {b.expand_bias, nullptr, call.before.kind, call.before.slope});
        seen_from = Offset(widened, -from * line, type);
      }
      Filter(call, strips.d, row, end, seen_from, b.filter, b.filter_bias,
             Offset(filtered, -row * filtered_line, type), wide);
      const int64_t out = (image * g.rows + row) * g.columns * slim;
      Multiply(type, pixels, wide, slim, {filtered, wide, 1}, {b.project, slim, 1},
               {Offset(b.y, out, type), slim, 1},
               {b.project_bias, Offset(b.residual, out, type), Activation::kNone, 0});
    }
  });
}

}  // namespace market_jax
