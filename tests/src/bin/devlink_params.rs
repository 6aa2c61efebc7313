//! I/O: reads and sets devlink parameters and reloads devices through the host crate's own devlink, for guests whose device has no PCI address
//! (netdevsim), where none of the products can be asked to do it. Prints JSON; a refusal's text goes to standard error.
#![expect(clippy::print_stdout, reason = "a command line tool prints")]

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sriov_host::netlink::devlink::{ConfigMode, Device, Devlink, ParamValue, ReloadAction};

const USAGE: &str = "usage: devlink-params show NAME | set NAME MODE VALUE | reload ACTION | firmware, each after BUS DEVICE";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bus, name, verb, rest @ ..] = arguments.as_slice() else { bail!(USAGE) };
    let device = Device { bus: bus.clone(), name: name.clone() };
    let devlink = Devlink::open()?;
    let answer = match (verb.as_str(), rest) {
        ("show", [param]) => show(&devlink, &device, param)?,
        ("set", [param, mode, value]) => {
            devlink.set_param(&device, param, mode_of(mode)?, &value_of(value))?;
            show(&devlink, &device, param)?
        }
        ("reload", [action]) => {
            let action = if action == "fw_activate" { ReloadAction::FwActivate } else { ReloadAction::DriverReinit };
            json!(devlink.reload(&device, action)?.into_iter().map(ReloadAction::as_str).collect::<Vec<_>>())
        }
        ("firmware", []) => json!(devlink.firmware_settings(&device)?),
        _ => bail!(USAGE),
    };
    println!("{answer}");
    Ok(())
}

fn show(devlink: &Devlink, device: &Device, name: &str) -> Result<Value> {
    let Some(param) = devlink.param(device, name)? else { return Ok(Value::Null) };
    let values: serde_json::Map<String, Value> = param.values.iter().map(|(mode, value)| (mode.to_string(), json!(value.to_string()))).collect();
    Ok(json!({ "generic": param.generic, "values": values }))
}

fn mode_of(text: &str) -> Result<ConfigMode> {
    let modes = [ConfigMode::Runtime, ConfigMode::DriverInit, ConfigMode::Permanent];
    modes.into_iter().find(|mode| mode.to_string() == text).with_context(|| format!("{text} is no mode"))
}

/// `true` and `false` are switches, numbers are of four bytes, all else is text.
fn value_of(text: &str) -> ParamValue {
    match (text.parse(), text.parse()) {
        (Ok(on), _) => ParamValue::Bool(on),
        (_, Ok(number)) => ParamValue::U32(number),
        _ => ParamValue::Text(text.to_owned()),
    }
}
