//! I/O: after an ADD of any configuration and its DEL everything is as it was, on this machine's kernel without a VF. Needs root.
//!
//! What does not live here: attributes that a PF holds (`vm_cni_undo`, the same property).

use anyhow::Result;
use sriov_tests::cni::{Machine, as_host};
use sriov_tests::undo::apply_then_undo;

#[test]
fn what_an_add_of_any_configuration_changes_its_del_takes_back() -> Result<()> {
    as_host(|| apply_then_undo(&Machine::new()?, None, 60, 1))
}
