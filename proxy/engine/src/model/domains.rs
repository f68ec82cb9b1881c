//! Which hosts a table's virtual hosts are for.

use std::collections::HashMap;

/// Hosts (lower case, no port) by name; each leads to a place among the table's virtual hosts.
#[derive(Debug, Default)]
pub struct Domains {
    exact: HashMap<String, usize>,
    /// `.suffix` of `*.suffix`.
    suffix: HashMap<String, usize>,
    /// Most labels of a suffix.
    labels_max: usize,
    any: Option<usize>,
}

impl Domains {
    /// Every host is served alike.
    pub fn everywhere() -> Self {
        Self { any: Some(0), ..Self::default() }
    }

    /// Adds `name`, `*.suffix` or `*`; says whether it is new. Lower case only.
    pub(crate) fn add(&mut self, domain: &str, place: usize) -> bool {
        match domain.strip_prefix('*') {
            Some("") => self.any.replace(place).is_none(),
            Some(suffix) => {
                self.labels_max = self.labels_max.max(suffix.bytes().filter(|byte| *byte == b'.').count());
                self.suffix.insert(suffix.to_owned(), place).is_none()
            }
            None => self.exact.insert(domain.to_owned(), place).is_none(),
        }
    }

    /// Whether no name makes a difference.
    pub fn nameless(&self) -> bool {
        self.exact.is_empty() && self.suffix.is_empty()
    }

    /// Where names lead that nothing else is for.
    pub(crate) const fn any(&self) -> Option<usize> {
        self.any
    }

    /// The exact one, else the longest suffix, else `*`. `host` is lower case. `*.example.com` covers one label or more before it,
    /// never `example.com` itself.
    pub(crate) fn named(&self, host: &str) -> Option<usize> {
        if let Some(place) = self.exact.get(host) {
            return Some(*place);
        }
        let mut found = self.any;
        for (at, _) in host.rmatch_indices('.').take(self.labels_max).filter(|(at, _)| *at > 0) {
            found = self.suffix.get(&host[at..]).copied().or(found);
        }
        found
    }

    /// Of each virtual host its domains, sorted.
    pub(crate) fn by_place(&self, hosts: usize) -> Vec<Vec<String>> {
        let mut all = vec![Vec::new(); hosts];
        let exact = self.exact.iter().map(|(host, place)| (host.clone(), place));
        let suffix = self.suffix.iter().map(|(suffix, place)| (format!("*{suffix}"), place));
        let any = self.any.iter().map(|place| ("*".to_owned(), place));
        for (domain, place) in exact.chain(suffix).chain(any) {
            if let Some(domains) = all.get_mut(*place) {
                domains.push(domain);
            }
        }
        all.iter_mut().for_each(|domains| domains.sort_unstable());
        all
    }
}
