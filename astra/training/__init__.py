"""Fine-tuning through quantisers: N devices emulated in one process, codebooks that follow the model, the loop."""
