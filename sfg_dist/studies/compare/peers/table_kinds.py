"""The peers that take a whole table, by name."""

from __future__ import annotations

from sfg_dist.studies.compare.peers import forest, gan_and_vae, tabddpm
from sfg_dist.studies.compare.peers.gaussian_copula import fit_gaussian_copula
from sfg_dist.studies.compare.peers.table_peer import TablePeer

TABLE_PEERS = (
    TablePeer("gaussian_copula", fit_gaussian_copula, {}),
    TablePeer("tabddpm", tabddpm.fit_tabddpm, tabddpm.SETTINGS),
    TablePeer("ctgan", gan_and_vae.fit_ctgan, gan_and_vae.SETTINGS, gan_and_vae.PACKAGE),
    TablePeer("tvae", gan_and_vae.fit_tvae, gan_and_vae.SETTINGS, gan_and_vae.PACKAGE),
    TablePeer("forest_diffusion", forest.fit_forest, forest.SETTINGS, forest.PACKAGE),
)
