//! The executable as people use it: the command line against a scripted platform, and whole platforms that must survive
//! faults, hostile applications, hostile builds and hostile sources.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

mod acme;
mod behave;
mod command_line;
mod control_plane;
mod data_plane;
mod egress;
mod fake_api;
mod faults;
mod grpc;
mod guide;
mod hand_over;
mod hand_over_streams;
mod hostile_builds;
mod isolation;
mod load;
mod machine_addresses;
mod moving;
mod neighbour;
mod one_off;
mod port_forward;
mod private_git;
mod routes;
mod several;
mod shared_address;
mod shared_stores;
mod static_site;
mod streams;
mod survive;
