// OpenBLAS, for comparison: reads lines "rows columns inner runs" and answers each with milliseconds a product.
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

char* openblas_get_corename(void);

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

static float* filled(size_t count) {
  float* data = malloc(count * sizeof(float));
  for (size_t i = 0; i < count; ++i) data[i] = rand() / (float)RAND_MAX - 0.5f;
  return data;
}

int main(void) {
  int m, n, k, runs;
  printf("%s\n", openblas_get_corename());
  fflush(stdout);
  while (scanf("%d %d %d %d", &m, &n, &k, &runs) == 4) {
    float *a = filled((size_t)m * k), *b = filled((size_t)k * n), *c = filled((size_t)m * n);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1, a, k, b, n, 0, c, n);
    const double start = now();
    for (int run = 0; run < runs; ++run)
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1, a, k, b, n, 0, c, n);
    printf("%.6f\n", (now() - start) / runs);
    fflush(stdout);
    free(a);
    free(b);
    free(c);
  }
  return 0;
}
