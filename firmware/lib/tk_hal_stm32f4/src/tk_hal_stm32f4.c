/* Source of every register: RM0402, the register maps of FLASH, PWR, RCC, GPIO and USART; bits by their names there. */
#include "tk_hal.h"

#include "tk_armv7m.h"
#include "tk_hal_stm32f4.h"

#define RCC_CR TK_REG(0x40023800U)
#define RCC_CR_HSION (1U << 0)
#define RCC_CR_HSIRDY (1U << 1)
#define RCC_CR_HSEON (1U << 16)
#define RCC_CR_HSERDY (1U << 17)
#define RCC_CR_HSEBYP (1U << 18)
#define RCC_CR_PLLON (1U << 24)
#define RCC_CR_PLLRDY (1U << 25)
#define RCC_PLLCFGR TK_REG(0x40023804U)
#define RCC_PLLCFGR_SRC_HSE (1U << 22)
#define RCC_CFGR TK_REG(0x40023808U)
#define RCC_CFGR_SW_MASK 3U
#define RCC_CFGR_SW_HSI 0U
#define RCC_CFGR_SW_PLL 2U
#define RCC_AHB1ENR TK_REG(0x40023830U)
#define RCC_APB1ENR TK_REG(0x40023840U)
#define RCC_APB1ENR_PWREN (1U << 28)

#define PWR_CR TK_REG(0x40007000U)
#define PWR_CR_VOS_SHIFT 14
#define PWR_CSR TK_REG(0x40007004U)
#define PWR_CSR_VOSRDY (1U << 14)

#define FLASH_ACR TK_REG(0x40023C00U)
#define FLASH_ACR_LATENCY_MASK 15U
#define FLASH_ACR_PRFTEN (1U << 8)
#define FLASH_ACR_ICEN (1U << 9)
#define FLASH_ACR_DCEN (1U << 10)

#define GPIO_MODER TK_REG(TK_UART_GPIO_BASE + 0x00U)
#define GPIO_PUPDR TK_REG(TK_UART_GPIO_BASE + 0x0CU)
#define GPIO_AFR(pin) TK_REG(TK_UART_GPIO_BASE + 0x20U + 4U * ((pin) / 8U))
#define GPIO_MODE_ALTERNATE 2U
#define GPIO_PULL_UP 1U

#define USART_SR TK_REG(TK_UART_BASE + 0x00U)
#define USART_SR_ORE (1U << 3)
#define USART_SR_RXNE (1U << 5)
#define USART_SR_TC (1U << 6)
#define USART_SR_TXE (1U << 7)
#define USART_DR TK_REG(TK_UART_BASE + 0x04U)
#define USART_BRR TK_REG(TK_UART_BASE + 0x08U)
#define USART_CR1 TK_REG(TK_UART_BASE + 0x0CU)
#define USART_CR1_RE (1U << 2)
#define USART_CR1_TE (1U << 3)
#define USART_CR1_UE (1U << 13)

/* Blocks for ever when the clock that it waits for is absent: then there is no UART to complain through, and the host
 * reports that READY did not come. */
static void wait_for(volatile const uint32_t *address, uint32_t mask, uint32_t value)
{
    while ((*address & mask) != value) {
    }
}

/* RCC's code for an APB divider of 1, 2, 4, 8 or 16. */
static uint32_t apb_code(uint32_t divider)
{
    return divider == 1U ? 0U : divider == 2U ? 4U : divider == 4U ? 5U : divider == 8U ? 6U : 7U;
}

static void start_clocks(void)
{
    /* Fall back to the internal oscillator, so that this also works after a bootloader has set the clocks. */
    RCC_CR |= RCC_CR_HSION;
    wait_for(&RCC_CR, RCC_CR_HSIRDY, RCC_CR_HSIRDY);
    RCC_CFGR = RCC_CFGR_SW_HSI;
    wait_for(&RCC_CFGR, RCC_CFGR_SW_MASK << 2, RCC_CFGR_SW_HSI << 2);
    RCC_CR &= ~RCC_CR_PLLON;
    wait_for(&RCC_CR, RCC_CR_PLLRDY, 0);

    RCC_APB1ENR |= RCC_APB1ENR_PWREN;
    (void)RCC_APB1ENR; /* two bus cycles until the peripheral answers */
    PWR_CR = (uint32_t)TK_PWR_VOS << PWR_CR_VOS_SHIFT;

    RCC_CR &= ~(RCC_CR_HSEON | RCC_CR_HSEBYP);
    if (TK_HSE_BYPASS != 0) {
        RCC_CR |= RCC_CR_HSEBYP;
    }
    RCC_CR |= RCC_CR_HSEON;
    wait_for(&RCC_CR, RCC_CR_HSERDY, RCC_CR_HSERDY);

    RCC_PLLCFGR = (uint32_t)TK_PLL_M | ((uint32_t)TK_PLL_N << 6) | ((TK_PLL_P / 2U - 1U) << 16) | RCC_PLLCFGR_SRC_HSE |
                  ((uint32_t)TK_PLL_Q << 24) | ((uint32_t)TK_PLL_R << 28);
    RCC_CR |= RCC_CR_PLLON;
    wait_for(&RCC_CR, RCC_CR_PLLRDY, RCC_CR_PLLRDY);
    wait_for(&PWR_CSR, PWR_CSR_VOSRDY, PWR_CSR_VOSRDY);

    /* The flash must be slow enough before the core becomes fast. */
    FLASH_ACR = (uint32_t)TK_FLASH_WAIT_STATES | FLASH_ACR_PRFTEN | FLASH_ACR_ICEN | FLASH_ACR_DCEN;
    wait_for(&FLASH_ACR, FLASH_ACR_LATENCY_MASK, TK_FLASH_WAIT_STATES);
    RCC_CFGR = (apb_code(TK_APB1_DIV) << 10) | (apb_code(TK_APB2_DIV) << 13);
    RCC_CFGR |= RCC_CFGR_SW_PLL;
    wait_for(&RCC_CFGR, RCC_CFGR_SW_MASK << 2, RCC_CFGR_SW_PLL << 2);
}

static void open_pin(uint32_t pin, uint32_t function)
{
    GPIO_AFR(pin) = (GPIO_AFR(pin) & ~(15U << (4U * (pin % 8U)))) | (function << (4U * (pin % 8U)));
    GPIO_PUPDR = (GPIO_PUPDR & ~(3U << (2U * pin))) | (GPIO_PULL_UP << (2U * pin));
    GPIO_MODER = (GPIO_MODER & ~(3U << (2U * pin))) | (GPIO_MODE_ALTERNATE << (2U * pin));
}

static void open_uart(void)
{
    RCC_AHB1ENR |= 1U << TK_UART_GPIO_ENABLE_BIT;
    TK_REG(TK_UART_ENABLE_ADDRESS) |= 1U << TK_UART_ENABLE_BIT;
    (void)TK_REG(TK_UART_ENABLE_ADDRESS);
    open_pin(TK_UART_TX_PIN, TK_UART_TX_AF);
    open_pin(TK_UART_RX_PIN, TK_UART_RX_AF);
    USART_CR1 = 0;
    USART_BRR = (TK_UART_CLOCK_HZ + TK_BAUD / 2U) / TK_BAUD; /* 16 samples a bit */
    USART_CR1 = USART_CR1_TE | USART_CR1_RE | USART_CR1_UE;
}

void tk_hal_init(void)
{
    start_clocks();
    open_uart();
    tk_armv7m_start_cycles();
}

size_t tk_hal_read(uint8_t *data, size_t max)
{
    size_t count = 0;
    while (count < max) {
        const uint32_t status = USART_SR;
        if ((status & (USART_SR_RXNE | USART_SR_ORE)) == 0U) {
            break;
        }
        /* Reading DR after SR also clears an overrun. A lost byte shows in the frame's checksum. */
        const uint8_t byte = (uint8_t)USART_DR;
        if ((status & USART_SR_RXNE) != 0U) {
            data[count++] = byte;
        }
    }
    return count;
}

void tk_hal_write(const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        wait_for(&USART_SR, USART_SR_TXE, USART_SR_TXE);
        USART_DR = data[i];
    }
}

void tk_hal_flush(void)
{
    wait_for(&USART_SR, USART_SR_TC, USART_SR_TC);
}

uint32_t tk_hal_cycles(void)
{
    return TK_DWT_CYCCNT;
}

_Noreturn void tk_hal_reset(void)
{
    tk_armv7m_reset();
}
