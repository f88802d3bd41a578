//! How instances find each other: names ([`dns`]).
//!
//! What must hold: a tenant never learns a name or address of another tenant unless it is bound to it; names resolve while
//! the control plane is away. Not here: who may send packets to whom (the orchestrator's firewall).

pub mod dns;
