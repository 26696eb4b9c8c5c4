// The backward pass, for the three kinds of convolutions.

#include "call.h"

namespace market_jax {
namespace {

// A piece of the gradient by z * w: gy itself, where nothing is added, or else in the workspace.
const void* OutputGradient(const Call& call, const BackwardBuffers& b, int64_t pixel,
                           int64_t pixels, float* bias) {
  const int64_t channels = call.outputs(), at = pixel * channels;
  const void* piece = Offset(b.gy, at, call.type);
  if (!b.gsums && !bias) return piece;
  void* dy = nullptr;
  if (b.gsums) dy = Workspace::Get(Workspace::kOutput, pixels * channels * Size(call.type) + 64);
  call.kernels.output_gradient(call.type, pixels, channels, piece, Offset(b.y, at, call.type),
                               b.gsums, dy, bias);
  return dy ? dy : piece;
}

// Where the gradient by a piece of z goes: gx itself, where nothing is applied to x.
void* InputTarget(const Call& call, const BackwardBuffers& b, int64_t pixel, int64_t pixels) {
  const int64_t channels = call.inputs();
  if (!call.activates()) return Offset(b.gx, pixel * channels, call.type);
  return Workspace::Get(Workspace::kGradient, pixels * channels * Size(call.type) + 64);
}

void InputGradient(const Call& call, const BackwardBuffers& b, const void* gz, int64_t pixel,
                   int64_t pixels, float* sums) {
  if (!call.activates()) return;
  const int64_t channels = call.inputs(), at = pixel * channels;
  call.kernels.input_gradient(call.type, pixels, channels, gz, Offset(b.x, at, call.type),
                              call.before, Offset(b.gx, at, call.type), sums);
}

void BackwardPointwise(const Call& call, const BackwardBuffers& b) {
  const int64_t c = call.g.channels, k = call.g.outputs, rows = call.g.images * call.in_pixels();
  const int64_t run = call.matrix_rows(), pieces = Ceil(rows, run);
  const int64_t parts = std::min(pieces, call.g.weights() > 1 << 18 ? call.threads() : call.parts(pieces));
  Sums all(Workspace::kSums, parts, 2 * c + k), gw(Workspace::kParts, b.gw ? parts : 0, c * k);
  ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
    float *sums = all.Part(part), *bias = b.gbias ? sums + 2 * c : nullptr;
    for (int64_t row = first * run; row < std::min(last * run, rows); row += run) {
      const int64_t count = std::min(run, rows - row);
      const void* dy = OutputGradient(call, b, row, count, bias);
      if (b.gw) {
        const void* z = Activated(call, b.x, row, count);
        MultiplyAndAdd(call.type, c, count, k, {z, 1, c}, {dy, k, 1}, {gw.Part(part), k, 1});
      }
      if (b.gx) {
        void* gz = InputTarget(call, b, row, count);
        Multiply(call.type, count, k, c, {dy, k, 1}, {b.w, 1, k}, {gz, c, 1});
        InputGradient(call, b, gz, row, count, sums);
      }
    }
  });
  const float* total = all.Total(call.pool);
  if (b.ginput) std::memcpy(b.ginput, total, 2 * c * sizeof(float));
  if (b.gbias) std::memcpy(b.gbias, total + 2 * c, k * sizeof(float));
  if (b.gw) std::memcpy(b.gw, gw.Total(call.pool), c * k * sizeof(float));
}

void BackwardDepthwise(const Call& call, const BackwardBuffers& b) {
  const Strips strips(call, call.g.height);
  const Depthwise& d = strips.d;
  const int64_t pieces = call.g.images * strips.count, parts = call.parts(pieces);
  const int64_t c = d.channels, weights = call.g.weights();
  Sums all(Workspace::kSums, parts, 2 * c + weights);
  ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
    float* scratch =
        Workspace::Floats(Workspace::kInput, call.kernels.depthwise_scratch(d, strips.strip));
    strips.Each(first, last, [&](const Depthwise& own, int64_t image, int64_t row, int64_t end,
                                 int64_t channel) {
      const int64_t in = image * d.height * d.width * c + channel;
      const int64_t out = image * d.rows * d.columns * c + channel;
      call.kernels.depthwise_gradient(
          call.type, own, row, end, Offset(b.x, in, call.type), From(call.before, channel),
          static_cast<const float*>(b.w) + channel, Offset(b.y, out, call.type),
          Offset(b.gy, out, call.type), b.gsums ? b.gsums + channel : nullptr,
          Offset(b.gx, in, call.type), all.Part(part) + channel, all.Part(part) + 2 * c + channel,
          scratch);
    });
  });
  const float* total = all.Total(call.pool);
  if (b.ginput) std::memcpy(b.ginput, total, 2 * c * sizeof(float));
  if (b.gw) std::memcpy(b.gw, total + 2 * c, weights * sizeof(float));
  if (!b.gbias) return;  // rare, and so in a pass of its own
  std::memset(b.gbias, 0, c * sizeof(float));
  call.kernels.output_gradient(call.type, call.g.images * call.out_pixels(), c, b.gy, b.y, b.gsums,
                               nullptr, b.gbias);
}

void BackwardOther(const Call& call, const BackwardBuffers& b) {
  const int64_t images = call.images(), pieces = call.g.images / images;
  const int64_t in = images * call.in_pixels(), out = images * call.out_pixels();
  const int64_t inputs = call.inputs(), outputs = call.outputs();
  Geometry g = call.g;
  g.images = images;
  std::shared_ptr<const Convolution> by_x, by_w;
  if (b.gw) by_w = Convolution::Find(Product::kWeightGradient, call.type, g);
  void* w = const_cast<void*>(b.w);
  if (b.gx) {
    by_x = Convolution::Find(call.transposed ? Product::kConvolve : Product::kInputGradient,
                             call.type, g);
    if (!by_x->plain()) {
      w = Workspace::Get(Workspace::kWeights, by_x->weights_size());
      by_x->Reorder(b.w, w);
    }
  }
  const int64_t parts = std::min(pieces, call.g.weights() > 1 << 18 ? call.threads() : call.parts(pieces));
  const int64_t weights = b.gw ? by_w->weights_size() / sizeof(float) : 0;
  Sums all(Workspace::kSums, parts, 2 * inputs + outputs), gw(Workspace::kParts, parts, weights);
  ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
    float *sums = all.Part(part), *bias = b.gbias ? sums + 2 * inputs : nullptr;
    for (int64_t piece = first; piece < last; ++piece) {
      void* dy = const_cast<void*>(OutputGradient(call, b, piece * out, out, bias));
      if (b.gw) {
        void* z = const_cast<void*>(Activated(call, b.x, piece * in, in));
        float* to = piece == first ? gw.Part(part) : Workspace::Floats(Workspace::kPart, weights);
        by_w->Run(call.transposed ? dy : z, to, call.transposed ? z : dy);
        for (int64_t i = 0; piece > first && i < weights; ++i) gw.Part(part)[i] += to[i];
      }
      if (b.gx) {
        void* gz = InputTarget(call, b, piece * in, in);
        by_x->Run(call.transposed ? dy : gz, w, call.transposed ? gz : dy);
        InputGradient(call, b, gz, piece * in, in, sums);
      }
    }
  });
  const float* total = all.Total(call.pool);
  if (b.ginput) std::memcpy(b.ginput, total, 2 * inputs * sizeof(float));
  if (b.gbias) std::memcpy(b.gbias, total + 2 * inputs, outputs * sizeof(float));
  if (!b.gw) return;
  const float* sum = gw.Total(call.pool);
  if (by_w->plain()) {
    std::memcpy(b.gw, sum, weights * sizeof(float));
  } else {
    by_w->Reorder(sum, b.gw);
  }
}

}  // namespace

void RunBackward(const Call& call, const BackwardBuffers& b) {
  if (!call.transposed && call.g.pointwise()) return BackwardPointwise(call, b);
  if (!call.transposed && call.g.depthwise()) return BackwardDepthwise(call, b);
  BackwardOther(call, b);
}

}  // namespace market_jax
