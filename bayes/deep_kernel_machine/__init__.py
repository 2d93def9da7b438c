"""Deep kernel machines: Gram matrices of the layers as what is learnt."""
