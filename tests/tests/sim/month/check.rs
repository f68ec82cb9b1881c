//! What is promised, held against everything after every step.
//!
//! A clock that is set makes certificates begin later or end sooner for whoever goes by it. So a promise about two proxies holds while
//! both leaves are good by both clocks; one about a proxy and the control plane while their clocks agree, and again soon after they do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};
use control::publish::trust::Phase;
use control::serve::authority::{AuditQuery, Issuance};
use proxy::tls::{Carries, Credential};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::time::{Instant, sleep};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::member::{Member, Process};
use super::watched::{HEARD, lock};
use super::{Month, STIR, middle, secs, unix, verified};

/// Dates are whole seconds; nearer to the edge than this nothing is promised.
const EDGE: u64 = 2;
/// Rows of the audit log that are read at a look, before all are.
const ROWS: usize = 16;

/// Whether a leaf is good by a clock; `None`: at the edge.
fn good(leaf: &Credential, by: &Member) -> Option<bool> {
    let (now, begin, end) = (by.clock.unix().as_secs(), secs(leaf.not_before), secs(leaf.not_after));
    let near = |edge: u64| now.abs_diff(edge) <= EDGE;
    (!near(begin) && !near(end)).then_some(begin < now && now < end)
}

/// Subject, issuer and key of a certificate, for whoever has to find out why.
fn short(der: &[u8]) -> String {
    X509Certificate::from_der(der).map_or_else(
        |error| error.to_string(),
        |(_, parsed)| {
            format!("{} by {} from {} to {}", parsed.subject(), parsed.issuer(), parsed.validity().not_before, parsed.validity().not_after)
        },
    )
}

impl Month {
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        self.check_log()?;
        self.check_roots()?;
        self.check_leaves()?;
        self.check_pairs()?;
        // The verifiers have judged each pair; the whole of TLS is tried on some.
        let (client, server) = (self.below(8), self.below(4));
        if client < 4 && client != server {
            self.handshake(usize::try_from(client)?, usize::try_from(server)?).await?;
        }
        self.check_supply().await?;
        let faults = std::mem::take(&mut lock(&self.scene).faults);
        ensure!(faults.is_empty(), "{}", faults.join("; "));
        Ok(())
    }

    /// The log has every leaf once; roots issue one after the other; whoever is revoked gets nothing.
    fn check_log(&mut self) -> anyhow::Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        let rows = |count| running.authority.audit(&AuditQuery::default(), count).map_err(anyhow::Error::msg);
        let mut newest = rows(ROWS)?;
        if newest.iter().all(|row| !self.serials.contains(&row.issued.serial)) {
            newest = rows(usize::MAX)?;
        }
        let known = newest.iter().position(|row| self.serials.contains(&row.issued.serial)).unwrap_or(newest.len());
        let roots: BTreeMap<String, String> = running.authority.issued().into_iter().map(|leaf| (leaf.serial, leaf.root)).collect();
        for row in newest[..known].iter().rev() {
            self.check_row(row, roots.get(&row.issued.serial))?;
        }
        for member in &self.members {
            let Some(leaf) = member.process.as_ref().and_then(|process| process.credentials.current()) else { continue };
            ensure!(self.serials.contains(&leaf.serial), "{} holds a certificate that is not in the log: {}", member.name, leaf.serial);
        }
        Ok(())
    }

    fn check_row(&mut self, row: &Issuance, root: Option<&String>) -> anyhow::Result<()> {
        let serial = &row.issued.serial;
        ensure!(self.serials.insert(serial.clone()), "the serial number {serial} was given twice");
        if let Some(root) = root.filter(|root| self.issued_below.last() != Some(root)) {
            ensure!(!self.issued_below.contains(root), "{serial} was issued below {root}, after another root had begun to issue");
            self.issued_below.push(root.clone());
        }
        let now = self.clock.0.unix().as_secs();
        for verdict in self.verdicts.iter().filter(|verdict| verdict.serial.is_none() && verdict.pardoned.is_none()) {
            let holds = verdict.until.is_none_or(|until| now < until);
            let of = self.members[verdict.member].identity();
            // A look comes after every step, so what is new was issued since the one before.
            ensure!(!(holds && of == row.issued.identity && verdict.seen), "{of} is revoked by {} and got {serial}", verdict.object);
        }
        Ok(())
    }

    /// Nobody believes a root again that it gave up, or one that was never the mesh's.
    fn check_roots(&mut self) -> anyhow::Result<()> {
        if let Some(running) = &self.running {
            let roots = running.authority.roots();
            let mut scene = lock(&self.scene);
            scene.ever.extend(roots.trusted().map(|root| root.der.to_vec()));
            let said = scene.issuing.is_none_or(|issuing| issuing == roots.issuing.sha256);
            ensure!(said, "another root issues than the last step said");
            for sight in scene.sights.iter_mut().filter(|sight| sight.left_behind) {
                let issuing = std::slice::from_ref(&roots.issuing.der);
                let renewed = sight.credentials.current().is_some_and(|leaf| verified(leaf.chain(), issuing, middle(&leaf)));
                if renewed && sight.trust.roots().contains(&roots.issuing.der) {
                    (sight.left_behind, sight.missed) = (false, 0);
                }
            }
        }
        for member in &mut self.members {
            let Some(process) = &member.process else { continue };
            let believed: BTreeSet<Vec<u8>> = process.trust.roots().iter().map(|root| root.to_vec()).collect();
            if believed == member.believed {
                continue;
            }
            ensure!(believed.is_subset(&lock(&self.scene).ever), "{} believes a root that is not the mesh's", member.name);
            member.forsworn.extend(member.believed.difference(&believed).cloned());
            ensure!(believed.is_disjoint(&member.forsworn), "{} believes a root again that it gave up", member.name);
            member.believed = believed;
        }
        Ok(())
    }

    /// No leaf outlives what it was issued by.
    fn check_leaves(&mut self) -> anyhow::Result<()> {
        let scene = lock(&self.scene);
        for member in &mut self.members {
            let Some(leaf) = member.process.as_ref().and_then(|process| process.credentials.current()) else { continue };
            if leaf.serial == member.serial {
                continue;
            }
            member.serial.clone_from(&leaf.serial);
            member.leaf_seen = Some(Instant::now());
            let mut ends = Vec::new();
            for der in leaf.chain().iter().map(|der| &der[..]).chain(scene.ever.iter().map(Vec::as_slice)) {
                let (_, parsed) = X509Certificate::from_der(der)?;
                ends.push((parsed.subject().to_string(), parsed.issuer().to_string(), parsed.validity().not_after.timestamp()));
            }
            // Up the chain by names; a cross certificate has the name of a root, and is no issuer of ours.
            let (mut at, end) = (ends[0].1.clone(), ends[0].2);
            for _ in 0..3 {
                let above: Vec<_> = ends.iter().skip(1).filter(|(subject, ..)| *subject == at).collect();
                let Some(longest) = above.iter().max_by_key(|(.., until)| *until) else { break };
                ensure!(end <= longest.2, "the certificate {} of {} outlives `{at}`", leaf.serial, member.name);
                at.clone_from(&longest.1);
            }
        }
        Ok(())
    }

    /// Whether that observer has heard that this leaf, or its holder, is revoked.
    fn revoked(&self, by: &Process, observer: &Member, who: usize, leaf: &Credential) -> bool {
        let (epoch, now) = (by.snapshots.load().epoch, observer.clock.unix().as_secs());
        self.verdicts.iter().any(|verdict| {
            let heard = verdict.epochs.0 <= epoch && epoch < verdict.epochs.1;
            let meant = verdict.member == who && verdict.serial.as_ref().is_none_or(|serial| *serial == leaf.serial);
            heard && meant && verdict.until.is_none_or(|until| now < until)
        })
    }

    /// What one proxy has to think of another; `None`: nothing is promised.
    fn verdict(&self, observer: usize, who: usize) -> Option<bool> {
        let (near, far) = (&self.members[observer], &self.members[who]);
        let (by, other) = (near.process.as_ref()?, far.process.as_ref()?);
        let (own, leaf) = (by.credentials.current()?, other.credentials.current()?);
        if self.revoked(by, near, who, &leaf) {
            return Some(false);
        }
        if !good(&leaf, near)? {
            return Some(false);
        }
        let both = good(&leaf, far)? && good(&own, near)? && good(&own, far)?;
        let scene = lock(&self.scene);
        let current = ![observer, who].iter().any(|index| scene.sights[*index].left_behind);
        (both && current).then_some(true)
    }

    fn check_pairs(&self) -> anyhow::Result<()> {
        for (observer, near) in self.members.iter().enumerate() {
            let Some(by) = &near.process else { continue };
            for (who, far) in self.members.iter().enumerate().filter(|(who, _)| *who != observer) {
                let Some(leaf) = far.process.as_ref().and_then(|process| process.credentials.current()) else { continue };
                let judged = by.tls.judge(leaf.chain());
                match (self.verdict(observer, who), &judged) {
                    (Some(true), Err(error)) => {
                        let believed: Vec<String> = by.trust.roots().iter().map(|root| short(root)).collect();
                        let of = |chain: &[CertificateDer<'_>]| chain.iter().map(|der| short(der)).collect::<Vec<_>>();
                        let own = by.credentials.current().map(|own| of(own.chain()));
                        bail!(
                            "{} (believes {believed:?}, shows {own:?}) does not believe {} ({}, {:?}): {error}",
                            near.name,
                            far.name,
                            leaf.serial,
                            of(leaf.chain())
                        )
                    }
                    (Some(false), Ok(_)) => bail!("{} believes {} ({}), and must not", near.name, far.name, leaf.serial),
                    _ => {}
                }
            }
            let judged = by.tls.judge(self.strangers[observer].chain());
            ensure!(by.credentials.current().is_none() || judged.is_err(), "{} believes another mesh", near.name);
        }
        Ok(())
    }

    /// One handshake, and a byte each way.
    pub(super) async fn handshake(&self, client: usize, server: usize) -> anyhow::Result<()> {
        let (near, far) = (&self.members[client], &self.members[server]);
        let (Some(from), Some(to)) = (&near.process, &far.process) else { return Ok(()) };
        let promised = || match (self.verdict(client, server), self.verdict(server, client)) {
            (Some(true), Some(true)) => Some(true),
            (Some(false), _) | (_, Some(false)) => Some(false),
            _ => None,
        };
        let state = || {
            let of = |process: &Process| (process.tls.generation(), process.snapshots.load().epoch);
            (promised(), of(from), of(to))
        };
        let before = state();
        let (here, there) = duplex(64 << 10);
        let (expected, address) = (std::sync::Arc::new(far.identity().parse()?), SocketAddr::new(far.address, 8080));
        let talk = async {
            let (opened, accepted) = tokio::join!(from.tls.connect(&expected, address, Carries::H1, here), to.tls.accept(there));
            let (mut opened, mut accepted) =
                (opened.map_err(|failure| failure.to_string())?, accepted.map_err(|failure| failure.to_string())?);
            let resumed = opened.facts.resumed;
            let said = async {
                accepted.stream.write_all(b"x").await?;
                accepted.stream.flush().await?;
                opened.stream.read_exact(&mut [0]).await
            };
            said.await.map(|_| resumed).map_err(|error| error.to_string())
        };
        let talked = talk.await;
        // A leaf or a word of the control plane may have come meanwhile.
        match (before.0.filter(|_| state() == before), talked) {
            (Some(true), Err(error)) => bail!("{} cannot call {}: {error}", near.name, far.name),
            // A session that is resumed rests on the leaves that opened it, which may be good for longer than those of now.
            (Some(false), Ok(false)) => bail!("{} calls {}, and must not", near.name, far.name),
            _ => Ok(()),
        }
    }

    /// Who reaches the control plane, by a clock that agrees, has a leaf.
    async fn check_supply(&mut self) -> anyhow::Result<()> {
        for index in 0..self.members.len() {
            if self.supplied(index).is_ok() {
                continue;
            }
            // A leap may have gone over several attempts.
            sleep(HEARD).await;
            if lock(&self.scene).dead {
                return Ok(());
            }
            self.refresh();
            self.refill().await?;
            sleep(STIR).await;
            self.supplied(index).with_context(|| {
                let refusals = self.running.as_ref().map(|running| running.authority.refusals(&AuditQuery::default()));
                let last: Vec<_> = refusals.into_iter().flatten().take(4).map(|refused| format!("{refused:?}")).collect();
                format!("the authority refused last: {last:?}")
            })?;
        }
        Ok(())
    }

    fn supplied(&self, index: usize) -> anyhow::Result<()> {
        if self.fair_since[index].is_none_or(|since| since.elapsed() <= 2 * HEARD) {
            return Ok(());
        }
        let member = &self.members[index];
        let leaf = member
            .process
            .as_ref()
            .and_then(|process| process.credentials.current())
            .with_context(|| format!("{} reaches the control plane and has no certificate", member.name))?;
        let good = good(&leaf, member) != Some(false);
        ensure!(good, "{} reaches the control plane and has no valid certificate: {leaf:?} at {:?}", member.name, member.clock.wall());
        Ok(())
    }

    /// What is not as it has to be once all is put right.
    pub(super) async fn wrong(&self) -> anyhow::Result<()> {
        let running = self.running.as_ref().context("no control plane runs")?;
        let roots = running.authority.roots();
        ensure!(roots.phase == Phase::Steady, "the rotation is at {}", roots.phase.text());
        let plan = self.plane.desk().plan().await?;
        ensure!(plan.as_array().is_some_and(|steps| steps.len() == 3), "a rotation is under way: {plan}");
        let shown = self.plane.desk().get("proxies").await?;
        for member in &self.members {
            let process = member.process.as_ref().context("no process")?;
            let leaf = process.credentials.current().with_context(|| format!("{} has no leaf", member.name))?;
            ensure!(good(&leaf, member) == Some(true), "the leaf of {} is not valid", member.name);
            ensure!(process.trust.roots() == [roots.issuing.der.clone()], "{} does not believe the issuing root alone", member.name);
            ensure!(verified(leaf.chain(), &process.trust.roots(), unix(&member.clock)), "the leaf of {} is not below it", member.name);
            let connected = shown.as_array().into_iter().flatten().any(|proxy| proxy["instance"] == member.name);
            ensure!(connected, "{} is not connected", member.name);
            ensure!(process.trust.outcast().borrow().is_none(), "{} is an outcast", member.name);
        }
        Ok(())
    }
}
