#ifndef TK_ARMV7EM_CONVOLUTION_H
#define TK_ARMV7EM_CONVOLUTION_H

#include <stdint.h>

#endif
