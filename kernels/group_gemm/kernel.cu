/* Products of a few tokens with weights quantized by groups, of which only some exist.

   The weight is a stream of pieces: a group, or 16 bytes of a large one, row after row. A lane takes a piece, a warp 32
   that follow one another, so that everything is read in whole lines; the activations lie in shared memory and are
   gathered. A worker (warp) takes the pieces from cuts[w] to cuts[w + 1] whatever row they are of: Stream-K. Where a row
   is cut, what each worker has of it is added up in the order of the workers, through shared memory: blocks begin where
   rows do. Nothing depends on who comes first.

   Float activations are scaled by a power of two per token into float16 (exact for bfloat16 but for what is 2^-30 of
   the largest), multiplied with the integers of the weight and added up in float16 over at most 8 products, small
   enough not to overflow; then float32. INT8 activations are quantized per token, their sums over a piece are exact.

   Settled when this is compiled (kernel.py):
     SIZE, BITS        G and b
     TOKENS            tokens of a call, at most
     INT8              activations are quantized
     X, OUT, BIAS      number kinds: 0 bfloat16, 1 float16, 2 float32; BIAS 3: none
     DENSE             every group exists: no index is read
     ZERO              zero points: 0 the middle, 1 in bits 12 to 15 of `meta`, 2 in `zero`
     WARPS, UNROLL     of a block; groups of 32 pieces that a warp has in flight
     HELD              chunks of 8 columns of a token that a thread holds in registers, 0 to read them twice */

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

#define PIECE (SIZE * BITS <= 128 ? SIZE : 128 / BITS) /* columns of a piece */
#define PIECES (SIZE / PIECE)                          /* of a group */
#define BYTES (PIECE * BITS / 8)                       /* of a piece */
#define WORDS ((BYTES + 3) / 4)
#define CHUNKS ((PIECE + 7) / 8) /* of 8 columns; of 4 where groups are of 4, the others 0 */
#define REAL (PIECE < 8 ? PIECE : 8)
#define THREADS (WARPS * 32)
#define ALL 0xffffffffu
#define HALF_BITS (BITS == 4 ? 9 : 5) /* |x| < 2^this: 8 products with codes of `BITS` stay below 65504 */

struct Arguments {
    const void *x;        /* [tokens, columns] */
    const u8 *values;     /* [pieces, BYTES] stored codes */
    const u32 *meta;      /* [groups] scale << 16 | zero << 12 | index */
    const u8 *zero;       /* ZERO 2: [groups] of 8 bits, or of 4, low nibble first */
    const int *row_index; /* [rows + 1] groups */
    const int *cuts;      /* [workers + 1] pieces */
    const int *finished;  /* [workers + 1] rows that end in the workers before */
    const void *bias;     /* [rows] */
    void *out;            /* [tokens, rows] */
    int rows, columns, tokens;
};

struct alignas(16) Four { u32 word[4]; };
struct alignas(8) Two { u32 word[2]; };

/* ---- numbers */

__device__ __forceinline__ float bits_float(u32 bits) { return __uint_as_float(bits); }

__device__ __forceinline__ float half_float(u16 half)
{
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(half));
    return out;
}

__device__ __forceinline__ u16 float_half(float value)
{
    u16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
    return out;
}

__device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c)
{
    u32 out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

__device__ __forceinline__ u32 sub2(u32 a, u32 b)
{
    u32 out;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

/* (word & mask) | magic as one instruction: left to itself the compiler takes two, both being constants. */
__device__ __forceinline__ u32 picked(u32 word, u32 mask, u32 magic)
{
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(word), "r"(mask), "r"(magic));
    return out;
}

__device__ __forceinline__ float sum2(u32 pair) { return half_float((u16)pair) + half_float((u16)(pair >> 16)); }

template <int KIND> __device__ __forceinline__ float read_number(const void *from, u64 at)
{
    if (KIND == 0)
        return bits_float((u32)((const u16 *)from)[at] << 16);
    return KIND == 1 ? half_float(((const u16 *)from)[at]) : ((const float *)from)[at];
}

template <int KIND> __device__ __forceinline__ void write_number(void *to, u64 at, float value)
{
    if (KIND == 0) {
        u16 out;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(value));
        ((u16 *)to)[at] = out;
    } else if (KIND == 1)
        ((u16 *)to)[at] = float_half(value);
    else
        ((float *)to)[at] = value;
}

/* Eight numbers that follow one another (REAL of them), as float. */
__device__ __forceinline__ void read_chunk(const void *from, u64 at, float *out)
{
    if (REAL == 8 && X != 2) {
        Four four = *(const Four *)((const u16 *)from + at);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u16 half = (u16)(four.word[i / 2] >> (i % 2 * 16));
            out[i] = X == 0 ? bits_float((u32)half << 16) : half_float(half);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        out[i] = i < REAL ? read_number<X>(from, at + i) : 0.0f;
}

/* ---- activations: shared memory as [TOKENS][CHUNKS][columns / PIECE] of 8 float16 or 8 INT8, in the order in which
   the codes come out of their words. Lanes with pieces that follow one another so find them in other banks. */

#define CHUNK_BYTES (INT8 ? 8 : 16)
extern __shared__ Four shared[];

struct Token {
    float multiply; /* x times this is stored, or coded */
    float back;     /* what sums are multiplied with */
};

__device__ __forceinline__ Token token_of(float largest)
{
    Token out;
    if (INT8) { /* as kernels/quantize/reference.py has it */
        float scale = largest == 0 ? 1.0f : fmaxf(__fdiv_rn(largest, 127.0f), 1.17549435e-38f);
        out.multiply = out.back = scale;
        return out;
    }
    int exponent = largest == 0 ? 0 : HALF_BITS - 1 - ((int)(__float_as_uint(largest) >> 23) - 127);
    exponent = max(-126, min(126, exponent));
    out.multiply = bits_float((u32)(127 + exponent) << 23);
    out.back = bits_float((u32)(127 - exponent) << 23);
    return out;
}

/* round(x / scale), the division correctly rounded (kernels/quantize/kernel.py says how and why). */
__device__ __forceinline__ u32 code_of(float x, float scale)
{
    float factor = scale < 5.42101086e-20f ? 18446744073709551616.0f : 1.0f;
    x *= factor, scale *= factor;
    float reciprocal = __frcp_rn(scale), q = x * reciprocal;
#pragma unroll
    for (int i = 0; i < (X == 2 ? 2 : 1); i++)
        q = __fmaf_rn(__fmaf_rn(q, -scale, x), reciprocal, q);
    return (u32)__float2int_rn(q) & 0xff;
}

/* The columns of the two halves of word `pair`: 4 apart of four bits, 2 apart of eight. */
__device__ __forceinline__ int first_of(int pair) { return BITS == 4 ? pair : pair / 2 * 4 + pair % 2; }
#define APART (BITS == 4 ? 4 : 2)

__device__ __forceinline__ void store_chunk(int place, const float *x, float multiply)
{
    if (INT8) {
        Two two = {};
#pragma unroll
        for (int i = 0; i < 8; i++) { /* four bits: even columns, then odd ones */
            int byte = BITS == 4 ? i % 2 * 4 + i / 2 : i;
            two.word[byte / 4] |= code_of(x[i], multiply) << (byte % 4 * 8);
        }
        ((Two *)shared)[place] = two;
        return;
    }
    Four four;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float low = x[first_of(i)] * multiply, high = x[first_of(i) + APART] * multiply;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(four.word[i]) : "f"(high), "f"(low));
    }
    shared[place] = four;
}

/* Read once where a thread can hold its part of all tokens in 16 registers, else twice. */
__device__ __forceinline__ void gather_ready(const Arguments &a, Token *token)
{
    __shared__ u32 largest[TOKENS][32];
    constexpr bool hold = HELD > 0;
    constexpr int times = hold ? HELD : 1;
    float x[hold ? TOKENS : 1][times][8];
    int chunks = a.columns / REAL, across = a.columns / PIECE; /* pieces of a row */
    int lane = threadIdx.x % 32, parts = hold ? HELD : (chunks + THREADS - 1) / THREADS;
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
#pragma unroll
        for (int part = 0; part < (hold ? HELD : 0); part++) {
            int c = part * THREADS + threadIdx.x;
            if (t < a.tokens && c < chunks)
                read_chunk(a.x, (u64)t * a.columns + (u64)c * REAL, x[t][part]);
            else
                for (int i = 0; i < 8; i++)
                    x[t][part][i] = 0;
        }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        float most = 0;
#pragma unroll times
        for (int part = 0; part < parts; part++) {
            int c = part * THREADS + threadIdx.x;
            if (!hold && (t >= a.tokens || c >= chunks))
                continue;
            float *mine = x[hold ? t : 0][hold ? part : 0];
            if (!hold)
                read_chunk(a.x, (u64)t * a.columns + (u64)c * REAL, mine);
#pragma unroll
            for (int i = 0; i < 8; i++)
                most = fmaxf(most, fabsf(mine[i]));
        }
        u32 bits = __reduce_max_sync(ALL, __float_as_uint(most));
        if (lane == 0)
            largest[t][threadIdx.x / 32] = bits;
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        token[t] = token_of(bits_float(__reduce_max_sync(ALL, lane < WARPS ? largest[t][lane] : 0)));
#pragma unroll times
        for (int part = 0; part < parts; part++) {
            int c = part * THREADS + threadIdx.x;
            if (c >= chunks)
                continue;
            float *mine = x[hold ? t : 0][hold ? part : 0];
            if (!hold) {
                for (int i = 0; i < 8; i++)
                    mine[i] = 0;
                if (t < a.tokens)
                    read_chunk(a.x, (u64)t * a.columns + (u64)c * REAL, mine);
            }
            store_chunk((t * CHUNKS + c % CHUNKS) * across + c / CHUNKS, mine, token[t].multiply);
        }
    }
    __syncthreads();
}

/* ---- weights */

struct Stream {
    const u8 *values;
    const u32 *meta;
    const u8 *zero;
    __device__ __forceinline__ Stream(const Arguments &a) : values(a.values), meta(a.meta), zero(a.zero) {}
};

struct Piece {
    u32 word[WORDS];
    u32 meta;
    u32 zero;
};

/* What lies at `at` of the stream. Read once, so it need not stay in the caches. */
__device__ __forceinline__ Piece load(const Stream &stream, int at)
{
    Piece out;
    const u8 *from = stream.values + (u64)at * BYTES;
    if constexpr (BYTES == 16)
        asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
            : "=r"(out.word[0]), "=r"(out.word[1]), "=r"(out.word[2]), "=r"(out.word[3]) : "l"(from));
    else if constexpr (BYTES == 8)
        asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(out.word[0]), "=r"(out.word[1]) : "l"(from));
    else if constexpr (BYTES == 4)
        out.word[0] = *(const u32 *)from;
    else
        out.word[0] = *(const u16 *)from;
    int group = at / PIECES;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(out.meta) : "l"(stream.meta + group));
    out.zero = 1 << (BITS - 1);
    if (ZERO == 2)
        out.zero = BITS == 8 ? stream.zero[group] : stream.zero[group / 2] >> (group % 2 * 4) & 15;
    return out;
}

__device__ __forceinline__ u32 zero_of(const Piece &piece) { return ZERO == 1 ? piece.meta >> 12 & 15 : piece.zero; }

/* The piece of its row that it is; `dense` is that where every group exists. */
__device__ __forceinline__ int column_of(const Piece &piece, int at, int dense)
{
    if (DENSE)
        return dense;
    int group = piece.meta & (ZERO == 1 ? 0xfff : 0xffff);
    return group * PIECES + at % PIECES;
}

/* What makes integers of stored codes, as pairs of float16. */
struct Zero {
    u32 low;  /* 1024 + zero */
    u32 high; /* -(64 + zero) */
};

__device__ __forceinline__ Zero zeros(const Piece &piece)
{
    Zero out;
    if (ZERO == 1) {
        u32 twice = __byte_perm(piece.meta, 0, 0x1010);
        out.low = picked(twice >> 12, 0x000f000f, 0x64006400);
        out.high = picked(twice >> 8, 0x00f000f0, 0xd400d400);
    } else {
        out.low = piece.zero * 0x10001u | 0x64006400;
        out.high = piece.zero * 0x100010u | 0xd400d400;
    }
    return out;
}

/* The integers (stored - zero) of eight columns as float16, exactly, in the order of the activations. */
__device__ __forceinline__ void integers(const u32 *word, Zero zero, u32 *out)
{
    if (BITS == 4) {
        u32 upper = word[0] >> 8;
        out[0] = sub2(picked(word[0], 0x000f000f, 0x64006400), zero.low);
        out[1] = fma2(picked(word[0], 0x00f000f0, 0x64006400), 0x2c002c00, zero.high); /* (1024 + 16 q) / 16 - 64 - zero */
        out[2] = sub2(picked(upper, 0x000f000f, 0x64006400), zero.low);
        out[3] = fma2(picked(upper, 0x00f000f0, 0x64006400), 0x2c002c00, zero.high);
        return;
    }
#pragma unroll
    for (int i = 0; i < REAL / 4; i++) {
        out[2 * i] = sub2(__byte_perm(word[i], 0x64646464, 0x4240), zero.low);
        out[2 * i + 1] = sub2(__byte_perm(word[i], 0x64646464, 0x4341), zero.low);
    }
}

/* The chunk of activations at a place of shared memory. Volatile: not to be read before they are there. */
__device__ __forceinline__ Four float_chunk(u32 base, int place)
{
    Four out;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.word[0]), "=r"(out.word[1]), "=r"(out.word[2]), "=r"(out.word[3]) : "r"(base + place * 16));
    return out;
}

__device__ __forceinline__ Two code_chunk(u32 base, int place)
{
    Two out;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(out.word[0]), "=r"(out.word[1]) : "r"(base + place * 8));
    return out;
}

#define PAIRS (BITS == 8 ? REAL / 2 : 4)
#define CHUNK_WORDS (BITS == 8 ? REAL / 4 : 1)

/* The products of a piece with the activations of every token, times the scale. */
__device__ __forceinline__ void multiply(const Piece &piece, u32 base, int column, int across, float *out)
{
    float scale = bits_float(piece.meta & 0xffff0000);
    if (INT8) {
        int zero = zero_of(piece);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            int sum = 0, ones = 0;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                Two x = code_chunk(base, (t * CHUNKS + c) * across + column);
#pragma unroll
                for (int i = 0; i < (BITS == 8 ? REAL / 4 : 2); i++) {
                    u32 word = BITS == 8 ? piece.word[c * CHUNK_WORDS + i] : piece.word[c] >> (4 * i) & 0x0f0f0f0f;
                    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(word), "r"(x.word[i]));
                    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(ones) : "r"(0x01010101), "r"(x.word[i]));
                }
            }
            out[t] = scale * (float)(sum - zero * ones);
        }
        return;
    }
    Zero zero = zeros(piece);
    float total[TOKENS];
#pragma unroll
    for (int first = 0; first < CHUNKS; first += 2) { /* 16 columns: 8 products in either half of a pair */
        u32 weight[2][4];
#pragma unroll
        for (int c = first; c < CHUNKS && c < first + 2; c++)
            integers(piece.word + c * CHUNK_WORDS, zero, weight[c - first]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            u32 sum = 0;
#pragma unroll
            for (int c = first; c < CHUNKS && c < first + 2; c++) {
                Four x = float_chunk(base, (t * CHUNKS + c) * across + column);
#pragma unroll
                for (int i = 0; i < PAIRS; i++)
                    sum = fma2(weight[c - first][i], x.word[i], sum);
            }
            total[t] = first ? total[t] + sum2(sum) : sum2(sum);
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
        out[t] = total[t] * scale;
}

/* ---- rows */

__device__ __forceinline__ void finish(const Arguments &a, int row, int t, float total)
{
    if (BIAS != 3)
        total += read_number<BIAS>(a.bias, row);
    write_number<OUT>(a.out, (u64)t * a.rows + row, total);
}

/* Where rows end, in pieces: 32 rows are known at a time, one by each lane. */
struct Ends {
    int base, mine;
    __device__ __forceinline__ void know(const Arguments &a, int row)
    {
        base = row;
        int at = min(row + 1 + (int)(threadIdx.x % 32), a.rows);
        mine = a.row_index[at] * PIECES;
    }
    __device__ __forceinline__ int of(const Arguments &a, int row)
    {
        if (row - base == 32)
            know(a, row);
        return __shfl_sync(ALL, mine, row - base);
    }
};

#define NEVER 0x7fffffff

/* Rows that ended, as what every lane has of them: summed up over the lanes eight at a time, four lanes for each, which
   takes a third of what eight sums by themselves do. A row of several tokens takes as many places. */
#define PLACES 8
#define STRIDE 36 /* floats: sixteen bytes of four lanes by eight fall into different banks */

struct Pending {
    float *place; /* [PLACES][STRIDE] of shared memory, of this warp */
    int count;

    __device__ __forceinline__ void add(float *sum)
    {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            place[(count + t) * STRIDE + threadIdx.x % 32] = sum[t];
            sum[t] = 0;
        }
        count += TOKENS;
    }

    /* The total of place lane / 4. */
    __device__ __forceinline__ float total()
    {
        int lane = threadIdx.x % 32;
        __syncwarp();
        const float4 *from = (const float4 *)(place + lane / 4 * STRIDE + lane % 4 * 8);
        float4 low = from[0], high = from[1];
        float sum = ((low.x + low.y) + (low.z + low.w)) + ((high.x + high.y) + (high.z + high.w));
        sum += __shfl_xor_sync(ALL, sum, 1);
        sum += __shfl_xor_sync(ALL, sum, 2);
        __syncwarp();
        return sum;
    }
};

/* Whatever does not come from the kernel before may be read while that one still runs. */
__device__ __forceinline__ void wait_for_others()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS) group_gemm(const __grid_constant__ Arguments a)
{
    __shared__ float head[WARPS][TOKENS], tail[WARPS][TOKENS];
    __shared__ int starts[WARPS];
    __shared__ alignas(16) float places[WARPS][PLACES * STRIDE];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, worker = blockIdx.x * WARPS + warp;
    int start = a.cuts[worker], stop = a.cuts[worker + 1];
    int row = a.finished[worker], last = a.finished[worker + 1];
    int across = a.columns / PIECE, block = start / 32, blocks = start < stop ? (stop + 31) / 32 : block;
    int final = max(stop - 1, start); /* what lies beyond is not read: it is another's */
    Stream stream(a);
    Piece piece[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        if (start < stop)
            piece[u] = load(stream, min((block + u) * 32 + lane, final));
    Ends ends;
    ends.know(a, row);
    int begin = row < a.rows ? a.row_index[row] * PIECES : start;
    if (lane == 0)
        starts[warp] = start;
    wait_for_others();
    Token token[TOKENS];
    gather_ready(a, token);
    int t = lane / 4 % TOKENS; /* the token of whose rows this lane gets the sums */
    float back = token[0].back;
#pragma unroll
    for (int i = 1; i < TOKENS; i++)
        back = t == i ? token[i].back : back;
    Pending pending = {places[warp], 0};

    int first_row = row, end = row < last ? ends.of(a, row) : NEVER;
    int dense = DENSE ? (block * 32 + lane) % across : 0;
    bool cut = begin < start; /* the first row is: others have the rest of it */
    auto flush = [&] {
        float total = pending.total() * back;
        int ended = row - pending.count / TOKENS + lane / 4 / TOKENS;
        if (lane % 4 == 0 && ended < row) {
            if (cut && ended == first_row)
                head[warp][t] = total;
            else if (t < a.tokens)
                finish(a, ended, t, total);
        }
        pending.count = 0;
    };
    float sum[TOKENS] = {};
    u32 base = (u32)__cvta_generic_to_shared(shared);
    for (; block < blocks; block += UNROLL) {
        float values[UNROLL][TOKENS];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int at = (block + u) * 32 + lane;
            multiply(piece[u], base, column_of(piece[u], at, dense), across, values[u]);
            piece[u] = load(stream, min(at + UNROLL * 32, final));
            bool mine = (u32)(at - start) < (u32)(stop - start);
#pragma unroll
            for (int i = 0; i < TOKENS; i++)
                values[u][i] = mine ? values[u][i] : 0;
            if (DENSE)
                for (dense += 32; dense >= across;)
                    dense -= across;
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int first = (block + u) * 32, at = first + lane;
            float *value = values[u];
#pragma unroll 1
            while (end <= first + 32) { /* the same for the whole warp */
                bool mine = at < end;
#pragma unroll
                for (int i = 0; i < TOKENS; i++) {
                    sum[i] += mine ? value[i] : 0;
                    value[i] = mine ? 0 : value[i];
                }
                pending.add(sum);
                row++;
                if (pending.count == PLACES)
                    flush();
                end = row < last ? ends.of(a, row) : NEVER;
            }
#pragma unroll
            for (int i = 0; i < TOKENS; i++)
                sum[i] += value[i];
        }
    }
    flush();
    pending.add(sum);
    float left = pending.total() * back;
    if (lane % 4 == 0 && lane / 4 < TOKENS)
        tail[warp][t] = left;
    for (; row < last; row++) /* only where there are no groups at all */
        if (lane < a.tokens)
            finish(a, row, lane, 0);
    __syncthreads();

    /* A row that ends in this worker and began before it. */
    if (begin < start && first_row < last && lane < TOKENS) {
        int from = warp;
        while (from > 0 && starts[from] > begin)
            from--;
        float total = 0;
        for (int w = from; w < warp; w++)
            total += tail[w][lane];
        total += head[warp][lane];
        if (lane < a.tokens)
            finish(a, first_row, lane, total);
    }
}

/* out [rows, columns] = the weight, where groups exist. */
extern "C" __global__ void __launch_bounds__(THREADS) dequantize(const __grid_constant__ Arguments a)
{
    int lane = threadIdx.x % 32, worker = blockIdx.x * WARPS + threadIdx.x / 32;
    int start = a.cuts[worker], stop = a.cuts[worker + 1], row = a.finished[worker];
    int across = a.columns / PIECE;
    Stream stream(a);
    for (int first = start; first < stop; first += 32) {
        int at = first + lane;
        if (at >= stop)
            return;
        while (row < a.rows && a.row_index[row + 1] * PIECES <= at)
            row++;
        Piece piece = load(stream, at);
        u32 zero = zero_of(piece);
        float scale = bits_float(piece.meta & 0xffff0000);
        u64 to = (u64)row * a.columns + (u64)column_of(piece, at, at - row * across) * PIECE;
#pragma unroll
        for (int i = 0; i < PIECE; i++) {
            int code = piece.word[i * BITS / 32] >> (i * BITS % 32) & ((1 << BITS) - 1);
            write_number<OUT>(a.out, to + i, scale * (float)(code - (int)zero));
        }
    }
}
