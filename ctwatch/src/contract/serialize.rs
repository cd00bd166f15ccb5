//! How numbers, times and names are written in JSON.
//! Nothing is computed here but a rounding.

use ctwatch_common::Cause;
use ctwatch_common::cause::Unit;
use jiff::Timestamp;
use serde::Serializer;

use crate::model::CounterSource;

// serde passes `serialize_with` and `skip_serializing_if` fields by reference.
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

pub(crate) fn millis<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

pub(super) fn micros<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

/// Three digits after the point say more than the numbers hold.
pub(crate) fn rounded<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(to_thousandths(*number))
}

pub(crate) fn optional_millis<S: Serializer>(
    time: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_some(&time.map(|time| format!("{time:.3}")))
}

pub(crate) fn optional_rounded<S: Serializer>(
    number: &Option<f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_some(&number.map(to_thousandths))
}

fn to_thousandths(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

pub(super) fn cause<S: Serializer>(cause: &Cause, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cause.name())
}

pub(super) fn optional_cause<S: Serializer>(cause: &Option<Cause>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_some(&cause.map(Cause::name))
}

pub(super) fn unit<S: Serializer>(unit: &Unit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(unit.name())
}

pub(crate) fn is_zero(value: &u64) -> bool {
    *value == 0
}

pub(super) fn counter_source<S: Serializer>(
    source: &Option<CounterSource>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_some(&source.map(CounterSource::name))
}
