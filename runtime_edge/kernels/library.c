/* What ONNX Runtime loads: the list of operators, and what a session calls to get those that it wants. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attention.h"
#include "operator.h"
#include "product.h"

static const Operator *const operators[] = {
    &attention_float32,
#ifdef __AMX_INT8__
    &attention_bfloat16,
    &product_int8,
#endif
};
enum { OPERATORS = sizeof operators / sizeof *operators };

/* Asks the kernel of the operating system for tiles; 0 where this process may not use them. */
EXPORT int lepton_tiles(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* Linux: Documentation/arch/x86/xstate.rst */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

/* A session registers this library and runs the same graph; `lepton.kernels` in its configuration has the words of those
 * that it wants, with spaces between them. */
EXPORT Status *RegisterCustomOps(Opaque *options, const ApiBase *base) {
    Opaque *domain = NULL;
    char wanted[100] = "", *rest = NULL;
    size_t size = sizeof wanted;
    const Api api = open_api(base);
    if (api == NULL) return NULL; /* of an earlier ONNX Runtime: its own kernels run */
    RETURN_IF(((Status * (*)(const Opaque *, const char *, char *, size_t *)) api[GET_SESSION_CONFIG_ENTRY])(
        options, "lepton.kernels", wanted, &size));
    const Operator *found[OPERATORS];
    int count = 0;
    for (char *word = strtok_r(wanted, " ", &rest); word != NULL; word = strtok_r(NULL, " ", &rest)) {
        int at = 0;
        while (at < OPERATORS && strcmp(operators[at]->choice, word) != 0) at++;
        if (at == OPERATORS || count == OPERATORS) return fault("names of kernels", "name");
        found[count++] = operators[at];
    }
    RETURN_IF(((Status * (*)(const char *, Opaque **)) api[CREATE_CUSTOM_OP_DOMAIN])("com.microsoft", &domain));
    for (int at = 0; at < count; at++)
        RETURN_IF(((Status * (*)(Opaque *, const CustomOp *)) api[CUSTOM_OP_DOMAIN_ADD])(domain, &found[at]->abi));
    return ((Status * (*)(Opaque *, Opaque *)) api[ADD_CUSTOM_OP_DOMAIN])(options, domain);
}
