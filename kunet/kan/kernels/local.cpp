// B-spline KAN sums in local form: of the G + k basis functions only k + 1 are not zero at any x, so an
// edge costs k + 1 multiply-adds whatever G is. Float32, one degree a library (-DDEGREE=k), any number of threads;
// results do not depend on how many.
//
// A "row" is one token (linear layer) or one pixel (convolution) of I features:
//   y[n, o] = sum_i sum_r values[r][n][i] W[i][start[n][i] + r][o].
// A convolution of `taps` offsets is a linear layer of taps * O outputs, each of which is then added to the output pixel
// that its offset points to. Weights are packed in tiles of TILE outputs, packed[o / TILE][i][j][o % TILE], zeros beyond.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float Vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

constexpr int K = DEGREE, K1 = DEGREE + 1;
constexpr int ROWS = 512;   // rows expanded at a time: their values stay in the second-level cache
constexpr int BLOCK = 64;   // rows that one thread takes at a time
using Index = int64_t;

static inline Vec load(const float *p) { return *(const Vec *)p; }
static inline void store(float *p, Vec v) { *(Vec *)p = v; }
static inline float total(Vec v) {
    float sum = 0;
    for (int e = 0; e < WIDTH; e++) sum += v[e];
    return sum;
}

extern "C" {
struct Grid {
    // outside: 0 the spline fades to zero, 1 goes on as its tangent, 2 keeps its end value
    float lower, inverse_step;
    int32_t cells, outside, uniform, pieces;
    // knots that differ from feature to feature: breaks (I, pieces + 1), tables (I, pieces, k + 1, k + 1)
    // of polynomials in u = (x - left) / width, first (I, pieces) their first function, ends (I, 2) of the base interval
    const float *breaks, *tables, *ends;
    const int32_t *first;
};
}

// The centred cardinal B-spline of degree D and its derivative at t, by truncated powers of |t| (see splines.cardinal).
template <int D> static inline float cardinal(float t) {
    constexpr float half = (D + 1) / 2.0f;
    float a = std::fabs(t), sum = 0, binomial = 1, factorial = 1;
    for (int i = 2; i <= D; i++) factorial *= i;
    for (int i = 0; i <= D / 2; i++) {
        float z = half - i - a, power = 1;
        z = z > 0 ? z : 0;
        for (int e = 0; e < D; e++) power *= z;
        sum += (i % 2 ? -binomial : binomial) * power;
        binomial = binomial * (D + 1 - i) / (i + 1);
    }
    return sum / factorial;
}
static inline float basis(float t) { return cardinal<K>(t); }
static inline float slope(float t) {
    if constexpr (K <= 1) return t >= -1 && t < 0 ? 1.f : (t >= 0 && t < 1 ? -1.f : 0.f);
    else return cardinal<(K > 1 ? K - 1 : 1)>(t + 0.5f) - cardinal<(K > 1 ? K - 1 : 1)>(t - 0.5f);
}

// One value: the first function that may not be zero, the k + 1 values, and, if asked, their derivatives in x.
template <bool DERIVE>
static inline int expand_uniform(float x, const Grid &g, float *v, float *d) {
    const float s = (x - g.lower) * g.inverse_step;
    float at = s;
    if (g.outside) at = s < 0 ? 0.f : (s > g.cells ? (float)g.cells : s);
    const float last = g.cells - 1;
    float cell = std::floor(at);
    cell = cell > 0 ? (cell < last ? cell : last) : 0.f;  // NaN goes to 0
    const float nan = x - x == 0 || x == x ? 0.f : x, u = at - cell, beyond = s - at;
    for (int r = 0; r < K1; r++) {
        float value, change = 0;
        if constexpr (K == 0) value = (at >= cell && at < cell + 1) || (at == cell + 1 && cell == last) ? 1.f : 0.f;
        else {
            const float t = u - r + (K - 1) / 2.0f;
            value = basis(t);
            // the slope of degree 1 jumps at knots: the upper end belongs to the last cell
            if (DERIVE || g.outside == 1) change = slope(K == 1 && g.outside && at >= g.cells ? t - 0.5f : t);
            if (g.outside == 1) value += beyond * change;
            if (g.outside == 2 && beyond != 0) change = 0;
        }
        v[r] = value + nan;
        if (DERIVE) d[r] = change * g.inverse_step + nan;
    }
    return (int)cell;
}

template <bool DERIVE>
static inline int expand_pieces(float x, Index i, const Grid &g, float *v, float *d) {
    const float *breaks = g.breaks + i * (g.pieces + 1), low = g.ends[2 * i], high = g.ends[2 * i + 1];
    const float at = g.outside ? (x < low ? low : (x > high ? high : x)) : x, beyond = x - at;
    const bool inside = at >= breaks[0] && at <= breaks[g.pieces];
    // the last break <= at; at the end of the base interval, when values go on from there, the piece before it
    int piece = (int)(std::upper_bound(breaks, breaks + g.pieces + 1, at) - breaks) - 1;
    piece = std::max(0, std::min(piece, g.pieces - 1));
    while (piece > 0 && (breaks[piece] == breaks[piece + 1] || (g.outside && breaks[piece] >= high))) piece--;
    const float left = breaks[piece], width = breaks[piece + 1] - left, u = width > 0 ? (at - left) / width : 0.f;
    const float *table = g.tables + (i * g.pieces + piece) * K1 * K1;
    for (int r = 0; r < K1; r++, table += K1) {
        float value = table[K], change = 0;
        for (int e = K - 1; e >= 0; e--) {
            change = change * u + value;
            value = value * u + table[e];
        }
        change = width > 0 ? change / width : 0.f;
        if (!inside) value = change = 0;
        if (g.outside == 1) value += beyond * change;
        if (g.outside == 2 && beyond != 0) change = 0;
        v[r] = x == x ? value : x;
        if (DERIVE) d[r] = x == x ? change : x;
    }
    return g.first[i * g.pieces + piece];
}

// Rows [from, to) of x (rows, I) into planes: values[r][p][i], slopes likewise, start[p][i].
template <bool DERIVE>
static void expand(const float *x, Index from, Index to, Index features, const Grid &g, int32_t *start, float *values,
                   float *slopes) {
    const Index size = (to - from) * features;
    const float *at = x + from * features;
#pragma omp parallel for schedule(static)
    for (Index block = 0; block < (size + 4095) / 4096; block++) {
        const Index stop = std::min(size, (block + 1) * 4096);
        if (g.uniform) {
#pragma omp simd
            for (Index e = block * 4096; e < stop; e++) {
                float v[K1], d[K1];
                start[e] = expand_uniform<DERIVE>(at[e], g, v, d);
                for (int r = 0; r < K1; r++) values[r * size + e] = v[r];
                if (DERIVE)
                    for (int r = 0; r < K1; r++) slopes[r * size + e] = d[r];
            }
        } else {
            for (Index e = block * 4096; e < stop; e++) {
                float v[K1], d[K1];
                start[e] = expand_pieces<DERIVE>(at[e], (from * features + e) % features, g, v, d);
                for (int r = 0; r < K1; r++) values[r * size + e] = v[r];
                if (DERIVE)
                    for (int r = 0; r < K1; r++) slopes[r * size + e] = d[r];
            }
        }
    }
}

// The kernels below see a linear layer: rows of I features to rows of `outputs` sums, in tiles of NV vectors.
struct Shape {
    Index features, functions, outputs, tiles;
};

// Memory that starts on a cache line: vectors that straddle two cost twice.
template <typename T> struct Buffer {
    T *data;
    explicit Buffer(Index size) : data((T *)std::aligned_alloc(64, (size * sizeof(T) + 64) / 64 * 64)) {}
    ~Buffer() { std::free(data); }
    Buffer(const Buffer &) = delete;
};

static Index features_at_once(Index stride) { return std::max<Index>(1, 24576 / (stride * 4)); }

// z (n, outputs) = the sums.
template <int NV>
static void forward_rows(const int32_t *start, const float *values, const Shape &s, const float *packed, Index n,
                         float *z) {
    constexpr int TILE = NV * WIDTH;
    const Index I = s.features, stride = s.functions * TILE, size = n * I, group = features_at_once(stride);
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (Index block = 0; block < (n + BLOCK - 1) / BLOCK; block++)
        for (Index tile = 0; tile < s.tiles; tile++) {
            const Index stop = std::min(n, (block + 1) * BLOCK);
            alignas(64) float sums[BLOCK * TILE];
            std::memset(sums, 0, sizeof sums);
            for (Index i0 = 0; i0 < I; i0 += group) {
                const Index i1 = std::min(I, i0 + group);
                const float *weights = packed + (tile * I + i0) * stride;
                for (Index p = block * BLOCK; p < stop; p++) {
                    float *sum = sums + (p - block * BLOCK) * TILE;
                    Vec acc[NV];
                    for (int q = 0; q < NV; q++) acc[q] = load(sum + q * WIDTH);
                    const float *w0 = weights;
                    for (Index i = i0; i < i1; i++, w0 += stride) {
                        const float *w = w0 + (Index)start[p * I + i] * TILE;
                        for (int r = 0; r < K1; r++) {
                            const float v = values[r * size + p * I + i];
                            for (int q = 0; q < NV; q++) acc[q] += v * load(w + r * TILE + q * WIDTH);
                        }
                    }
                    for (int q = 0; q < NV; q++) store(sum + q * WIDTH, acc[q]);
                }
            }
            const Index o = tile * TILE, width = std::min<Index>(TILE, s.outputs - o);
            for (Index p = block * BLOCK; p < stop; p++)
                std::memcpy(z + p * s.outputs + o, sums + (p - block * BLOCK) * TILE, width * 4);
        }
}

// gx[p, i] = sum_r slope_r sum_o g[p, o] W[i][start + r][o]; g in tiles, (tiles, n, TILE).
template <int NV>
static void backward_x(const int32_t *start, const float *slopes, const Shape &s, const float *packed, const float *g,
                       Index n, float *gx) {
    constexpr int TILE = NV * WIDTH;
    const Index I = s.features, stride = s.functions * TILE, size = n * I, group = features_at_once(stride);
#pragma omp parallel for schedule(dynamic)
    for (Index block = 0; block < (n + BLOCK - 1) / BLOCK; block++) {
        const Index stop = std::min(n, (block + 1) * BLOCK);
        std::memset(gx + block * BLOCK * I, 0, (stop - block * BLOCK) * I * 4);
        for (Index tile = 0; tile < s.tiles; tile++)
            for (Index i0 = 0; i0 < I; i0 += group) {
                const Index i1 = std::min(I, i0 + group);
                const float *weights = packed + (tile * I + i0) * stride;
                for (Index p = block * BLOCK; p < stop; p++) {
                    Vec gv[NV];
                    for (int q = 0; q < NV; q++) gv[q] = load(g + (tile * n + p) * TILE + q * WIDTH);
                    const float *w0 = weights;
                    for (Index i = i0; i < i1; i++, w0 += stride) {
                        const float *w = w0 + (Index)start[p * I + i] * TILE;
                        float d[K1];
                        for (int r = 0; r < K1; r++) d[r] = slopes[r * size + p * I + i];
                        Vec sum = {}, other = {};
                        for (int q = 0; q < NV; q++) {
                            Vec mix = d[0] * load(w + q * WIDTH);
                            for (int r = 1; r < K1; r++) mix += d[r] * load(w + r * TILE + q * WIDTH);
                            if (q % 2) other += mix * gv[q];
                            else sum += mix * gv[q];
                        }
                        sum += other;
                        gx[p * I + i] += total(sum);
                    }
                }
            }
    }
}

// The gradient of the packed weights, added on. Rows are taken cell by cell, so that the k + 1 rows of W that
// a cell touches stay in registers.
template <int NV>
static void backward_w(const int32_t *start, const float *values, const Shape &s, const float *g, Index n, float *gw) {
    constexpr int TILE = NV * WIDTH, FIT = K1 <= 4 ? 4 : 2, PART = NV % FIT == 0 ? FIT : (NV % 3 == 0 && K1 <= 4 ? 3 : (NV % 2 == 0 ? 2 : 1));
    const Index I = s.features, starts = s.functions - K, size = n * I;
#pragma omp parallel
    {
        Buffer<int32_t> order(n), edge(starts + 1);
        Buffer<float> mine(n * K1);
#pragma omp for schedule(dynamic)
        for (Index i = 0; i < I; i++) {
            int32_t *end = edge.data;
            std::fill(end, end + starts + 1, 0);
            for (Index p = 0; p < n; p++) end[start[p * I + i] + 1]++;
            for (Index c = 0; c < starts; c++) end[c + 1] += end[c];
            for (Index p = 0; p < n; p++) {
                const int32_t at = end[start[p * I + i]]++;
                order.data[at] = p;
                for (int r = 0; r < K1; r++) mine.data[at * K1 + r] = values[r * size + p * I + i];
            }
            for (Index tile = 0; tile < s.tiles; tile++)
                for (Index c = 0, from = 0; c < starts; from = end[c], c++) {
                    if (from == end[c]) continue;
                    float *w = gw + ((tile * I + i) * s.functions + c) * TILE;
                    for (int part = 0; part < NV; part += PART) {
                        Vec acc[K1][PART];
                        for (int r = 0; r < K1; r++)
                            for (int q = 0; q < PART; q++) acc[r][q] = load(w + r * TILE + (part + q) * WIDTH);
                        for (Index at = from; at < end[c]; at++) {
                            const float *gr = g + (tile * n + order.data[at]) * TILE + part * WIDTH;
                            Vec gv[PART];
                            for (int q = 0; q < PART; q++) gv[q] = load(gr + q * WIDTH);
                            for (int r = 0; r < K1; r++)
                                for (int q = 0; q < PART; q++) acc[r][q] += mine.data[at * K1 + r] * gv[q];
                        }
                        for (int r = 0; r < K1; r++)
                            for (int q = 0; q < PART; q++) store(w + r * TILE + (part + q) * WIDTH, acc[r][q]);
                    }
                }
        }
    }
}

extern "C" {
// A linear layer: `rows` tokens, and one tap. A convolution: `rows` input pixels, images of in_h x in_w, each of which
// sends one sum to an output pixel through each of kh x kw taps.
struct Problem {
    Index rows, features, functions, outputs, convolution;
    Index in_h, in_w, out_h, out_w, kh, kw, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    Index taps() const { return kh * kw; }
    // The output pixel that an input pixel reaches through a tap; -1: none.
    Index target(Index row, Index tap) const {
        const Index image = row / (in_h * in_w), pixel = row % (in_h * in_w);
        const Index h = pixel / in_w + pad_h - tap / kw * dilation_h, w = pixel % in_w + pad_w - tap % kw * dilation_w;
        if (h < 0 || w < 0 || h % stride_h || w % stride_w || h / stride_h >= out_h || w / stride_w >= out_w) return -1;
        return (image * out_h + h / stride_h) * out_w + w / stride_w;
    }
};
}

// weight (O, I, J, taps) into tiles: packed[tile][i][j][e], where tap * O + o = tile * TILE + e; and back.
static void pack(const float *weight, const Problem &p, const Shape &s, int tile_size, float *packed) {
    const Index J = s.functions;
#pragma omp parallel for schedule(static) collapse(2)
    for (Index tile = 0; tile < s.tiles; tile++)
        for (Index i = 0; i < s.features; i++)
            for (int e = 0; e < tile_size; e++) {
                const Index at = tile * tile_size + e, tap = at / p.outputs, o = at % p.outputs;
                const float *from = weight + (o * s.features + i) * J * p.taps() + tap;
                float *to = packed + (tile * s.features + i) * J * tile_size + e;
                for (Index j = 0; j < J; j++) to[j * tile_size] = at < s.outputs ? from[j * p.taps()] : 0.f;
            }
}
static void unpack(const float *packed, const Problem &p, const Shape &s, int tile_size, float *weight) {
    const Index J = s.functions;
#pragma omp parallel for schedule(static) collapse(2)
    for (Index o = 0; o < p.outputs; o++)
        for (Index i = 0; i < s.features; i++)
            for (Index tap = 0; tap < p.taps(); tap++) {
                const Index at = tap * p.outputs + o;
                const float *from = packed + (at / tile_size * s.features + i) * J * tile_size + at % tile_size;
                float *to = weight + (o * s.features + i) * J * p.taps() + tap;
                for (Index j = 0; j < J; j++) to[j * p.taps()] = from[j * tile_size];
            }
}

// Sums z of the input rows [from, from + n) to the outputs that they reach. Threads share out the channels, so that
// every sum is made in one order.
static void fold(const Problem &p, Index from, Index n, const float *z, Index *targets, float *y) {
    const Index taps = p.taps();
#pragma omp parallel for schedule(static)
    for (Index row = 0; row < n; row++)
        for (Index tap = 0; tap < taps; tap++) targets[row * taps + tap] = p.target(from + row, tap);
#pragma omp parallel for schedule(static)
    for (Index slice = 0; slice < (p.outputs + WIDTH - 1) / WIDTH; slice++) {
        const Index start = slice * WIDTH, stop = std::min<Index>(p.outputs, start + WIDTH);
        for (Index at = 0; at < n * taps; at++) {
            if (targets[at] < 0) continue;
            const float *sum = z + at * p.outputs;
            float *out = y + targets[at] * p.outputs;
            if (stop - start == WIDTH) store(out + start, load(out + start) + load(sum + start));
            else
                for (Index o = start; o < stop; o++) out[o] += sum[o];
        }
    }
}

// The gradients that reach z of the rows [from, from + n), in tiles (tiles, n, TILE), zeros beyond.
static void gather(const Problem &p, const Shape &s, Index from, Index n, const float *g, int tile_size, float *tiled) {
    const Index taps = p.taps();
#pragma omp parallel for schedule(static)
    for (Index row = 0; row < n; row++)
        for (Index tap = 0, at = 0; tap <= taps; tap++) {
            const Index out = tap == taps ? -1 : p.convolution ? p.target(from + row, tap) : from + row;
            const Index stop = tap == taps ? s.tiles * tile_size : at + p.outputs;
            for (Index o = 0; at < stop;) {
                const Index width = std::min(stop - at, tile_size - at % tile_size);
                float *into = tiled + (at / tile_size * n + row) * tile_size + at % tile_size;
                if (out < 0) std::fill(into, into + width, 0.f);
                else std::memcpy(into, g + out * p.outputs + o, width * 4);
                at += width, o += width;
            }
        }
}

static int vectors(Index outputs) {  // of a tile: as many as pay, with little padding
    int best = 1;
    const Index least = (outputs + WIDTH - 1) / WIDTH;
    for (int nv : {2, 4, 6, 8})
        if ((least + nv - 1) / nv * nv <= least + least / 16) best = nv;
    return best;
}
#define WITH_TILE(call)         \
    switch (nv) {               \
        case 1: call(1); break; \
        case 2: call(2); break; \
        case 4: call(4); break; \
        case 6: call(6); break; \
        default: call(8);       \
    }

extern "C" {
// y (rows of output, O) from x (rows, I) and weight (O, I, J, taps).
void kan_forward(const Problem *problem, const Grid *grid, const float *x, const float *weight, float *y) {
    const Problem &p = *problem;
    const Index I = p.features, part = std::min<Index>(p.rows, ROWS), all = p.taps() * p.outputs;
    const int nv = vectors(all), tile = nv * WIDTH;
    const Shape s{I, p.functions, all, (all + tile - 1) / tile};
    Buffer<float> packed(s.tiles * I * s.functions * tile), values(part * I * K1), z(p.convolution ? part * all : 0);
    Buffer<Index> targets(p.convolution ? part * p.taps() : 0);
    Buffer<int32_t> start(part * I);
    pack(weight, p, s, tile, packed.data);
    if (p.convolution) std::memset(y, 0, p.rows / (p.in_h * p.in_w) * p.out_h * p.out_w * p.outputs * 4);
    for (Index from = 0; from < p.rows; from += ROWS) {
        const Index n = std::min<Index>(ROWS, p.rows - from);
        float *into = p.convolution ? z.data : y + from * all;
        expand<false>(x, from, from + n, I, *grid, start.data, values.data, nullptr);
#define CALL(NV) forward_rows<NV>(start.data, values.data, s, packed.data, n, into)
        WITH_TILE(CALL)
#undef CALL
        if (p.convolution) fold(p, from, n, z.data, targets.data, y);
    }
}

// From g, the gradient of y: gx, shaped as x, and gweight, as weight; either may be null.
void kan_backward(const Problem *problem, const Grid *grid, const float *x, const float *weight, const float *g,
                  float *gx, float *gweight) {
    const Problem &p = *problem;
    const Index I = p.features, part = std::min<Index>(p.rows, ROWS), all = p.taps() * p.outputs;
    const int nv = vectors(all), tile = nv * WIDTH;
    const Shape s{I, p.functions, all, (all + tile - 1) / tile};
    const Index weights = s.tiles * I * s.functions * tile;
    Buffer<float> packed(gx ? weights : 0), gpacked(gweight ? weights : 0), tiled(s.tiles * part * tile);
    Buffer<float> values(part * I * K1), slopes(part * I * K1);
    Buffer<int32_t> start(part * I);
    if (gx) pack(weight, p, s, tile, packed.data);
    if (gweight) std::memset(gpacked.data, 0, weights * 4);
    for (Index from = 0; from < p.rows; from += ROWS) {
        const Index n = std::min<Index>(ROWS, p.rows - from);
        expand<true>(x, from, from + n, I, *grid, start.data, values.data, slopes.data);
        gather(p, s, from, n, g, tile, tiled.data);
#define CALL(NV)                                                                                          \
    if (gx) backward_x<NV>(start.data, slopes.data, s, packed.data, tiled.data, n, gx + from * I);        \
    if (gweight) backward_w<NV>(start.data, values.data, s, tiled.data, n, gpacked.data)
        WITH_TILE(CALL)
#undef CALL
    }
    if (gweight) unpack(gpacked.data, p, s, tile, gweight);
}
}
