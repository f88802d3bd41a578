# Answers with the name of its component and the request as it came: by HTTP on PORT, and datagrams on port 9001.
use strict;
use IO::Socket::INET;
$SIG{CHLD} = 'IGNORE';
my $name = $ENV{ARCO_COMPONENT};
if (!fork) {
    my $socket = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => 9001, Proto => 'udp') or die "udp: $!";
    while ($socket->recv(my $data, 65536)) { $socket->send("$name $data") }
    exit 1;
}
my $server = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => $ENV{PORT} // 8080, Listen => 128, ReuseAddr => 1)
    or die "tcp: $!";
for (;;) {
    my $client = $server->accept or next;
    if (fork) { close $client; next }
    my $request = '';
    while ($request !~ /\r\n\r\n/) { sysread($client, $request, 65536, length $request) or exit }
    my ($head, $body) = split /\r\n\r\n/, $request, 2;
    my $left = $head =~ /^content-length: *(\d+)/mi ? $1 - length $body : 0;
    while ($left > 0) { my $read = sysread($client, $body, $left, length $body) or exit; $left -= $read }
    my $user = $head =~ m{^GET /oauth2/} ? "X-User: ann\r\n" : '';
    $head =~ s/\r//g;
    my $answer = "$name $head\n\n$body\n";
    my $length = length $answer;
    print $client "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: $length\r\n${user}Connection: close\r\n\r\n";
    print $client $answer unless $head =~ /^HEAD/;
    exit;
}
