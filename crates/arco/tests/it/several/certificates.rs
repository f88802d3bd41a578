//! Automatic certificates of two servers on the same stores, from a real ACME server: one orders, the gateways of both prove
//! the host, and an order whose server dies is begun anew with the same account.

use super::Shared;
use crate::acme::Prepared;
use crate::behave::good;
use arco_testkit::until;
use std::net::TcpListener;

#[test]
fn servers_have_one_account_and_one_order() {
    let Some(prepared) = Prepared::make("http-01") else { return };
    let Some(shared) = Shared::make() else { return };
    let roles = ["api", "controller", "builder", "eventlog", "registry", "gateway", "console"];
    let mut here = shared.server(&roles, &prepared.env());
    let mut there = shared.server(&["gateway", "console"], &[]);
    // It asks the gateway of the server that orders nothing.
    let authority = prepared.start(&there);
    let source = here.folder("site", &[("index.html", "<h1>shared</h1>")]).display().to_string();
    good(&here, &["deploy", &source, "--app", "calm", "--component", "site"]);
    good(&here, &["route", "add", "calm/site", "one.shared.test", "--tls", "auto"]);
    let (answer, at_there) = until("the certificate", 60, || authority.get(&there, "one.shared.test").ok());
    assert!(answer.contains(" 200 ") && answer.contains("shared"), "{answer}");
    let (_, at_here) = until("the certificate at both", 60, || authority.get(&here, "one.shared.test").ok());
    assert!(at_here == at_there, "both gateways have the same certificate");
    assert_eq!((authority.count("accounts"), authority.count("orders")), (1, 1));

    // The authority asks for the proof, and before it has it the server that ordered dies.
    let held = TcpListener::bind(("127.0.0.2", there.address("http").unwrap().port())).unwrap();
    held.set_nonblocking(true).unwrap();
    authority.point("two.shared.test", "127.0.0.2");
    good(&here, &["route", "add", "calm/site", "two.shared.test", "--tls", "auto"]);
    let open = until("the authority asks for the proof", 60, || held.accept().ok());
    here.kill();
    authority.point("two.shared.test", "127.0.0.1");
    drop((held, open));
    here.boot();
    let (answer, _) =
        until("the certificate of the second order", 60, || authority.get(&there, "two.shared.test").ok());
    assert!(answer.contains(" 200 "), "{answer}");
    assert_eq!((authority.count("accounts"), authority.count("orders")), (1, 3));

    good(&here, &["delete", "calm", "--yes"]);
    for mut it in [here, there] {
        assert!(it.stop(), "{}", it.log());
        until("nothing is left over", 60, || it.leftovers().is_empty().then_some(()));
    }
}
