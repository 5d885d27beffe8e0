/* sums [64 rows of a warpgroup, TOKENS] += a [64, STEP] * codes [STEP, TOKENS], by wgmma: a from registers.

   Of the sums, lane 4g + q of a warp holds rows g and g + 8 of its 16, of tokens 8j + 2q and the next one, as
   [j][row][token]. */

#if FLOAT
#define SUM "+f"
#define TYPES ".f32.e4m3.e4m3 "
#define TAIL ", go, 1, 1;}"
#else
#define SUM "+r"
#define TYPES ".s32.s8.s8 "
#define TAIL ", go;}"
#endif

/* Of a piece of codes: tokens in rows of 128 bytes, swizzled by 128 bytes, so that 8 tokens are 1,024 bytes apart. */
__device__ __forceinline__ u64 descriptor(u32 at)
{
    return (u64)(at >> 4 & 0x3fff) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

#define D8(A, B, C, D, E, F, G, H) "%" #A ",%" #B ",%" #C ",%" #D ",%" #E ",%" #F ",%" #G ",%" #H
#define D32_0 D8(0, 1, 2, 3, 4, 5, 6, 7) "," D8(8, 9, 10, 11, 12, 13, 14, 15) "," \
    D8(16, 17, 18, 19, 20, 21, 22, 23) "," D8(24, 25, 26, 27, 28, 29, 30, 31)
#define D32_1 D8(32, 33, 34, 35, 36, 37, 38, 39) "," D8(40, 41, 42, 43, 44, 45, 46, 47) "," \
    D8(48, 49, 50, 51, 52, 53, 54, 55) "," D8(56, 57, 58, 59, 60, 61, 62, 63)
#define D32_2 D8(64, 65, 66, 67, 68, 69, 70, 71) "," D8(72, 73, 74, 75, 76, 77, 78, 79) "," \
    D8(80, 81, 82, 83, 84, 85, 86, 87) "," D8(88, 89, 90, 91, 92, 93, 94, 95)
#define D32_3 D8(96, 97, 98, 99, 100, 101, 102, 103) "," D8(104, 105, 106, 107, 108, 109, 110, 111) "," \
    D8(112, 113, 114, 115, 116, 117, 118, 119) "," D8(120, 121, 122, 123, 124, 125, 126, 127)
#define S4(I) SUM(s[I]), SUM(s[I + 1]), SUM(s[I + 2]), SUM(s[I + 3])
#define S16(I) S4(I), S4(I + 4), S4(I + 8), S4(I + 12)
#define S32(I) S16(I), S16(I + 16)

#define WGMMA(N, SUMS, A, B, C, D, DESC, META, GO)                                                                      \
    "{.reg .pred go; setp.ne.b32 go, %" #GO ", 0; wgmma.mma_async.sp.sync.aligned.m64n" #N "k64" TYPES "{" SUMS "}, {%" \
    #A ",%" #B ",%" #C ",%" #D "}, %" #DESC ", %" #META ", 0" TAIL
#define INPUTS \
    "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "l"(codes), "r"(metadata), "r"((u32)accumulate)

__device__ __forceinline__ void multiply(Sum *s, const Four &a, u32 metadata, u64 codes, bool accumulate)
{
#if TILES == 8
    asm volatile(WGMMA(64, D32_0, 32, 33, 34, 35, 36, 37, 38) : S32(0) : INPUTS);
#elif TILES == 16
    asm volatile(WGMMA(128, D32_0 "," D32_1, 64, 65, 66, 67, 68, 69, 70) : S32(0), S32(32) : INPUTS);
#elif TILES == 24
    asm volatile(WGMMA(192, D32_0 "," D32_1 "," D32_2, 96, 97, 98, 99, 100, 101, 102)
                 : S32(0), S32(32), S32(64) : INPUTS);
#else
    asm volatile(WGMMA(256, D32_0 "," D32_1 "," D32_2 "," D32_3, 128, 129, 130, 131, 132, 133, 134)
                 : S32(0), S32(32), S32(64), S32(96) : INPUTS);
#endif
}

__device__ __forceinline__ void begin_products(Sum *s)
{
#pragma unroll
    for (int i = 0; i < 4 * TILES; i++)
        asm volatile("" : SUM(s[i])::"memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* Until no more than so many groups are unfinished. */
template <int PENDING> __device__ __forceinline__ void await_products(Sum *s)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    if (PENDING == 0)
#pragma unroll
        for (int i = 0; i < 4 * TILES; i++)
            asm volatile("" : SUM(s[i])::"memory");
}
