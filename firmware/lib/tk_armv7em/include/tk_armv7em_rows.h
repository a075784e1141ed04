#ifndef TK_ARMV7EM_ROWS_H
#define TK_ARMV7EM_ROWS_H

#include <stdint.h>

#endif
