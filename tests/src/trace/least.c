/* I/O: the least program that reads its standard input to the end and sends a message on a netlink socket. */
#include <sys/socket.h>
#include <unistd.h>

int main(void) {
    char bytes[4096] = {0};
    while (read(0, bytes, sizeof bytes) > 0)
        ;
    int netlink = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return send(netlink, bytes, 16, 0) == 16 ? 0 : 1;
}
