/* Numbers, copies and launches: what both kernels of few tokens use. */

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

#define TOKENS (8 * TILES)
#define ROWS 64
#define CODES_UNIT (UNIT * TOKENS)
#define TILE_ROWS (ROWS * ROW_GROUPS)

#if FLOAT
typedef float Sum;
__device__ __forceinline__ Sum as_sum(int bits) { return __int_as_float(bits); }
__device__ __forceinline__ int as_bits(Sum sum) { return __float_as_int(sum); }
#else
typedef int Sum;
__device__ __forceinline__ Sum as_sum(int bits) { return bits; }
__device__ __forceinline__ int as_bits(Sum sum) { return sum; }
#endif

struct alignas(16) Four { u32 word[4]; };
struct alignas(16) Quad { Sum sum[4]; };

struct Arguments {
    const u8 *weight;          /* sparse: [tiles of 64 rows][units][4 warps][WARP_UNIT]; dense: [rows, columns] */
    const u8 *codes;           /* [16-column pieces of all units][TOKENS][16] */
    const float *scale;        /* [tokens] */
    const float *weight_scale; /* [rows] */
    const void *bias;          /* [rows] */
    void *out;                 /* [tokens, rows] */
    Sum *sums;                 /* [2][blocks][PART]: see Parts; ABSENT before and after */
    const void *x;             /* [tokens, columns] */
    u32 rows, columns, tokens, units, tiles, pieces;
};

extern __shared__ __align__(128) u8 shared[];

/* ---- numbers */

__device__ __forceinline__ float half_float(u16 half)
{
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(half));
    return out;
}

template <int KIND> __device__ __forceinline__ float read_number(const void *from, u64 at)
{
    if (KIND == 0)
        return __uint_as_float((u32)((const u16 *)from)[at] << 16);
    return KIND == 1 ? half_float(((const u16 *)from)[at]) : ((const float *)from)[at];
}

__device__ __forceinline__ u16 narrow(float value)
{
    u16 out;
    if (X == 0)
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(value));
    else
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
    return out;
}

/* ---- launches that overlap */

__device__ __forceinline__ void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_begin()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* ---- copies to shared memory */

__device__ __forceinline__ u32 address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

/* 16 bytes, zeros if not `real`. */
__device__ __forceinline__ void copy(u32 to, const void *from, bool real = true)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING> __device__ __forceinline__ void wait_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ Four load(u32 at)
{
    Four out;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.word[0]), "=r"(out.word[1]), "=r"(out.word[2]), "=r"(out.word[3]) : "r"(at));
    return out;
}
