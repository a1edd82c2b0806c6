// Sums of tabulated edges: every edge is int8 samples of its function, and y a sum of two rows a feature.
//   y[n, o] = scale[o] * sum_i (m0 T[i][b][o] + m1 T[i][b + 1][o]) + offset[o],   m0 : m1 = 1 - f : f,
// where x[n, i] lies a share f into interval b. Integers until the end: two products and a sum are one instruction.
// T is stored in pairs and in tiles of PAD outputs: T[o / PAD][i][b][o % PAD][2] = (sample b, sample b + 1).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>
#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

using Index = int64_t;
constexpr int PAD = 64;        // outputs a tile
constexpr int FEATURES = 8;    // features whose tables stay in the cache together
constexpr int BLOCK = 1024, PART = 256;   // rows located at a time; rows whose sums stay in the cache

// sums[0..PAD) += the two weighted samples of each feature; a weight holds both, the second in its upper half.
static inline void add_rows(const int8_t *tables, Index stride, const int32_t *interval, const int32_t *weight,
                            Index features, int32_t *sums) {
#if defined(__AVX512BW__)
    __m512i acc[PAD / 16];
    for (int q = 0; q < PAD / 16; q++) acc[q] = _mm512_loadu_si512(sums + q * 16);
    for (Index i = 0; i < features; i++) {
        const __m512i both = _mm512_set1_epi32(weight[i]);
        const int8_t *row = tables + i * stride + (Index)interval[i] * PAD * 2;
        for (int q = 0; q < PAD / 16; q++) {
            const __m512i pairs = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(row + q * 32)));
#if defined(__AVX512VNNI__)
            acc[q] = _mm512_dpwssd_epi32(acc[q], pairs, both);
#else
            acc[q] = _mm512_add_epi32(acc[q], _mm512_madd_epi16(pairs, both));
#endif
        }
    }
    for (int q = 0; q < PAD / 16; q++) _mm512_storeu_si512(sums + q * 16, acc[q]);
#else
    for (Index i = 0; i < features; i++) {
        const int8_t *row = tables + i * stride + (Index)interval[i] * PAD * 2;
        const int32_t first = weight[i] & 0xffff, second = weight[i] >> 16;
        for (int o = 0; o < PAD; o++) sums[o] += first * row[2 * o] + second * row[2 * o + 1];
    }
#endif
}

extern "C" void kan_table(const float *x, Index rows, Index features, Index outputs, Index intervals, const float *lower,
                          const float *inverse_step, const float *strength, const int8_t *table, const float *scale,
                          const float *offset, float *y) {
    const Index tiles = (outputs + PAD - 1) / PAD, most = std::min<Index>(BLOCK, rows);
    std::vector<int32_t> interval(most * features), weight(most * features);
    std::vector<uint8_t> missing(most);
    const float end = intervals;
    for (Index start = 0; start < rows; start += BLOCK) {
        const Index n = std::min<Index>(BLOCK, rows - start);
        // where each value lies, once for all outputs
#pragma omp parallel for schedule(static)
        for (Index p = 0; p < n; p++) {
            const float *at = x + (start + p) * features;
            int nan = 0;
#pragma omp simd reduction(| : nan)
            for (Index i = 0; i < features; i++) {
                float s = (at[i] - lower[i]) * inverse_step[i];
                nan |= s != s;
                s = s > 0 ? (s < end ? s : end) : 0.f;  // NaN goes to 0
                const float b = std::min(std::floor(s), end - 1);
                const int32_t second = (int32_t)((s - b) * strength[i] + 0.5f), first = (int32_t)strength[i] - second;
                interval[p * features + i] = (int32_t)b;
                weight[p * features + i] = second << 16 | first;
            }
            missing[p] = nan;
        }
        // a tile of outputs at a time, so that its tables stay in the cache for all rows of the block
#pragma omp parallel for schedule(dynamic) collapse(2)
        for (Index part = 0; part < (n + PART - 1) / PART; part++)
            for (Index tile = 0; tile < tiles; tile++) {
                const Index p0 = part * PART, p1 = std::min<Index>(n, p0 + PART), o0 = tile * PAD;
                std::vector<int32_t> sums((p1 - p0) * PAD);
                for (Index i0 = 0; i0 < features; i0 += FEATURES) {
                    const Index some = std::min<Index>(FEATURES, features - i0);
                    const int8_t *tables = table + (tile * features + i0) * intervals * PAD * 2;
                    for (Index p = p0; p < p1; p++)
                        add_rows(tables, intervals * PAD * 2, interval.data() + p * features + i0,
                                 weight.data() + p * features + i0, some, sums.data() + (p - p0) * PAD);
                }
                for (Index p = p0; p < p1; p++)
                    for (Index o = o0; o < std::min<Index>(outputs, o0 + PAD); o++)
                        y[(start + p) * outputs + o] =
                            missing[p] ? NAN : sums[(p - p0) * PAD + o - o0] * scale[o] + offset[o];
            }
    }
}
