/* Activations as float16: made by a launch of its own, once for all blocks of the product (of FEW tokens by the product
   itself: few.cuh).

   halves [tokens][units * 256], zeros beyond the columns. Those in floating point are scaled by a power of two per token,
   such that the largest has the exponent of 2^14: exact for bfloat16 from 2^-31 of the largest on. Codes (X 3) stay as
   they are. back [tokens]: what makes sums of the activations as they were given.

   Of one tile of tokens, warps read them through L1 and never wait for one another. For more, all warps copy those of a
   round to a stage of shared memory, [COLUMN_WARPS][TOKENS][PITCH bytes], along with their chunks.

   For WARPGROUP they lie as wgmma reads them, [units][256 / 8][TOKENS][8]: what an mma multiplies, 4 columns of each of
   4 pieces, is two times 8, the first two of the columns of each piece, then the others. Shared memory has the same,
   [COLUMN_WARPS][UNIT_BYTES]; tokens that do not exist are whatever was there. */

#define PITCH (UNIT * 2 + 16)      /* every lane of a warp loads from banks of its own */
#define COPIED (!FEW && TILES > 1) /* to shared memory */
#define ITEMS ((COLUMN_WARPS * TOKENS + WARPS - 1) / WARPS)
#define UNIT_BYTES (TOKENS * (WARPGROUP ? UNIT * 2 : PITCH))
#define ROUND_BYTES (COPIED ? COLUMN_WARPS * UNIT_BYTES : 0)
#define CONVERTERS 512 /* threads of a block */

struct alignas(X == 3 ? 8 : 16) Raw { u32 word[X == 2 ? 8 : X == 3 ? 2 : 4]; };

/* Eight that follow one another, zeros beyond the columns. */
__device__ __forceinline__ Raw read_raw(const Arguments &it, u32 token, u32 column)
{
    Raw out = {};
    if (column >= it.columns)
        return out;
    u64 at = (u64)token * it.columns + column;
    if (it.columns % 8 == 0) /* aligned */
        return *(const Raw *)((const u8 *)it.x + at * (X == 2 ? 4 : X == 3 ? 1 : 2));
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (column + i >= it.columns)
            continue;
        if (X == 3)
            out.word[i / 4] |= (u32)((const u8 *)it.x)[at + i] << i % 4 * 8;
        else if (X == 2)
            out.word[i * (X == 2)] = ((const u32 *)it.x)[at + i];
        else
            out.word[i / 2 % (sizeof(out) / 4)] |= (u32)((const u16 *)it.x)[at + i] << i % 2 * 16;
    }
    return out;
}

/* The largest magnitude, as bits that grow with it. */
__device__ __forceinline__ u32 largest_of(const Raw &raw)
{
    u32 most = 0;
#pragma unroll
    for (int i = 0; i < sizeof(raw) / 4; i++)
        most = X == 2 ? max(most, raw.word[i] & 0x7fffffff) : __vmaxu2(most, raw.word[i] & 0x7fff7fff);
    return X == 2 ? most : max(most & 0xffff, most >> 16);
}

/* The exponent of such bits, biased as in float32. */
__device__ __forceinline__ u32 exponent_of(u32 largest)
{
    return X == 2 ? largest >> 23 : X == 0 ? largest >> 7 : __float_as_uint(half_float((u16)largest)) >> 23;
}

/* The exponent, biased, of what activations are multiplied with whose largest is this: one of 2^14 comes out. */
__device__ __forceinline__ u32 multiplier(u32 largest) { return min(253u, 268 - exponent_of(largest)); }

__device__ __forceinline__ float number_of(const Raw &raw, int i)
{
    if (X == 3)
        return (float)(signed char)(raw.word[i / 4] >> i % 4 * 8);
    if (X == 2)
        return __uint_as_float(raw.word[i * (X == 2)]);
    u32 word = raw.word[i / 2 % (sizeof(raw) / 4)];
    if (X == 0)
        return __uint_as_float(i % 2 ? word & 0xffff0000 : word << 16);
    return half_float((u16)(word >> i % 2 * 16));
}

#if !FEW
/* Eight activations of a token that follow one another, as float16. */
__device__ __forceinline__ void write_halves(const Arguments &it, u32 token, u32 column, const Four &four)
{
    if (!WARPGROUP) {
        *(Four *)(it.halves + ((u64)token * it.units * UNIT + column) * 2) = four;
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 two = (column + 2 * i) / 2, place = two % (PIECE / 2), piece = two / (PIECE / 2); /* pairs of columns */
        u32 eight = (piece / 4 * (PIECE / 4) + place / 2) * 2 + place % 2;
        *(u32 *)(it.halves + ((eight * TOKENS + token) * 4 + piece % 4) * 4) = four.word[i];
    }
}

/* Grid: tokens x shares of the columns. Every block of a token finds its largest, and writes its share. */
extern "C" __global__ void __launch_bounds__(CONVERTERS) convert(const __grid_constant__ Arguments it)
{
    __shared__ u32 largest[CONVERTERS / 32];
    u32 token = blockIdx.x, most = 0;
    let_next_begin();
    wait_for_previous();
    if (X != 3) {
#pragma unroll 4
        for (u32 column = threadIdx.x * 8; column < it.columns; column += CONVERTERS * 8)
            most = max(most, largest_of(read_raw(it, token, column)));
        most = __reduce_max_sync(ALL, most);
        if (threadIdx.x % 32 == 0)
            largest[threadIdx.x / 32] = most;
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < CONVERTERS / 32; i++)
            most = max(most, largest[i]);
    }
    u32 exponent = X == 3 ? 127 : multiplier(most);
    float multiply = __uint_as_float(exponent << 23);
    if (threadIdx.x == 0 && blockIdx.y == 0)
        it.back[token] = X == 3 ? it.scale[token] : __uint_as_float((254 - exponent) << 23);
    u32 first = blockIdx.y * CONVERTERS + threadIdx.x;
    for (u32 column = first * 8; column < it.units * UNIT; column += gridDim.y * CONVERTERS * 8) {
        Raw raw = read_raw(it, token, column);
        Four four;
#pragma unroll
        for (int i = 0; i < 4; i++)
            four.word[i] = halves(number_of(raw, 2 * i) * multiply, number_of(raw, 2 * i + 1) * multiply);
        write_halves(it, token, column, four);
    }
}
#endif
