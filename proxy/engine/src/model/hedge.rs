//! Second attempts that start while the first is still waited for.

use http::Method;

use crate::raw;
use crate::rejected::Wrong;

/// Most methods of one policy.
const METHODS_MAX: usize = 16;

/// When a second attempt starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Hedge {
    /// The latency, as learned, after which it does: between 0 and 1.
    pub quantile: f64,
    /// Most second attempts, per cent of requests.
    pub max_percent: f64,
    methods: Vec<Method>,
}

impl Hedge {
    pub(crate) fn compile(raw: &proto::mesh::Hedge) -> Result<Self, Wrong> {
        let proto::mesh::Hedge { at_quantile, max_percent, methods } = raw;
        if !(*at_quantile > 0.0 && *at_quantile < 100.0) {
            return Err(Wrong::new("at_quantile", format!("{at_quantile} is not between 0 and 100")));
        }
        if !(*max_percent > 0.0 && *max_percent <= 100.0) {
            return Err(Wrong::new("max_percent", format!("{max_percent} is not above 0 and up to 100")));
        }
        if methods.is_empty() {
            return Err(Wrong::new("methods", "is empty: which methods may be sent twice"));
        }
        Ok(Self { quantile: at_quantile / 100.0, max_percent: *max_percent, methods: raw::methods(methods, METHODS_MAX)? })
    }

    /// Whether requests of this method may be sent twice.
    pub fn covers(&self, method: &Method) -> bool {
        self.methods.contains(method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_sense_is_taken() {
        // Aim: bounds of the numbers, and methods that were listed.
        let raw = proto::mesh::Hedge { at_quantile: 95.0, max_percent: 5.0, methods: vec!["GET".into(), "HEAD".into()] };
        let hedge = Hedge::compile(&raw).unwrap();
        assert!((hedge.quantile - 0.95).abs() < 1e-9 && hedge.covers(&Method::HEAD) && !hedge.covers(&Method::POST));
        for bad in [
            proto::mesh::Hedge { at_quantile: 0.0, ..raw.clone() },
            proto::mesh::Hedge { at_quantile: f64::NAN, ..raw.clone() },
            proto::mesh::Hedge { at_quantile: 100.0, ..raw.clone() },
            proto::mesh::Hedge { max_percent: 0.0, ..raw.clone() },
            proto::mesh::Hedge { max_percent: f64::INFINITY, ..raw.clone() },
            proto::mesh::Hedge { methods: Vec::new(), ..raw.clone() },
            proto::mesh::Hedge { methods: vec!["G ET".into()], ..raw.clone() },
            proto::mesh::Hedge { methods: vec!["GET".into(); METHODS_MAX + 1], ..raw.clone() },
        ] {
            assert!(Hedge::compile(&bad).is_err(), "{bad:?}");
        }
    }
}
