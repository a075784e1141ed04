#ifndef TK_ARMV7EM_POOLING_H
#define TK_ARMV7EM_POOLING_H

#include <stdint.h>

#endif
