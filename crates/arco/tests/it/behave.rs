//! A program that behaves as its variable `BEHAVE` says, built from a Dockerfile on the base stack; and what the tests of
//! whole platforms share.

use arco_testkit::Platform;
use serde_json::Value;
use std::path::PathBuf;

pub(crate) const EXECUTABLE: &str = env!("CARGO_BIN_EXE_arco");

const DOCKERFILE: &str = "FROM debian:12\nCOPY behave.pl /behave.pl\nEXPOSE 8080\nCMD [\"perl\", \"/behave.pl\"]\n";

const PROGRAM: &str = r#"use strict; use IO::Socket::INET;
$| = 1;
my $mode = $ENV{BEHAVE} // 'serve';
my $port = $ENV{PORT} // 8080;
sub serve {
  my ($host, $port) = @_;
  my $server = IO::Socket::INET->new(LocalAddr => $host, LocalPort => $port, Listen => 128, ReuseAddr => 1) or die "listen: $!";
  for (;;) {
    my $client = $server->accept or next;
    sysread($client, my $request, 8192);
    my $named = $mode ne 'names' || defined gethostbyname("$ENV{ARCO_COMPONENT}.$ENV{ARCO_APPLICATION}.default.arco.internal");
    my $said = $named ? '200 OK' : '500 No Name';
    print $client "HTTP/1.1 $said\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
    close $client;
  }
}
if ($mode eq 'crash') { print "the cellar is on fire\n"; exit 3 }
if ($mode eq 'never') { sleep 10 while 1 }
if ($mode eq 'late') { sleep 4 }
if ($mode eq 'loopback') { serve('127.0.0.1', $port) }
if ($mode eq 'other') { serve('0.0.0.0', 3999) }
if ($mode eq 'memory') { my @all; push @all, 'x' x (1 << 20) while 1 }
if ($mode eq 'brief') { $SIG{ALRM} = sub { print "the well is dry\n"; exit 4 }; alarm 1 }
if ($mode eq 'stubborn') { $SIG{TERM} = 'IGNORE' }
if ($mode eq 'flood') { fork or do { print '0123456789' x 20, "\n" while 1 } }
if ($mode eq 'binary') { print map({ chr } 0 .. 255), "\x00\xff\xfe\n" for 1 .. 50; print 'y' x 300_000, "\n"; print "after it\n" }
if ($mode eq 'disk') { open my $file, '>', '/fill'; while (print $file 'z' x (1 << 20)) { $file->flush or last } print "writing failed: $!\n"; exit 9 }
serve('0.0.0.0', $port);
"#;

/// The folder with the program.
pub(crate) fn source(platform: &Platform) -> PathBuf {
    platform.folder("behave", &[("Dockerfile", DOCKERFILE), ("behave.pl", PROGRAM)])
}

/// A folder with a Dockerfile on the base stack.
pub(crate) fn dockerfile(platform: &Platform, name: &str, lines: &str) -> PathBuf {
    platform.folder(name, &[("Dockerfile", &format!("FROM debian:12\n{lines}\nCMD [\"sleep\", \"1000\"]\n"))])
}

/// Runs a command that must succeed with `-o json`; its document.
#[track_caller]
pub(crate) fn good(platform: &Platform, words: &[&str]) -> Value {
    let outcome = platform.arco(&[words, &["-o", "json"]].concat());
    assert_eq!(outcome.status, 0, "{words:?}: {outcome:?}");
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// Whether all words are in the text, in any case.
#[track_caller]
pub(crate) fn says(text: &Value, words: &[&str]) {
    let found = text.as_str().unwrap_or_default().to_lowercase();
    let missing: Vec<_> = words.iter().filter(|it| !found.contains(&it.to_lowercase())).collect();
    assert!(missing.is_empty(), "{missing:?} are not in {text}");
}
