# For `node-gyp rebuild`: CMake does the work (see CMakeLists.txt), because gyp does not know nvcc.
{
  "targets": [
    {
      "target_name": "flashattn",
      "type": "none",
      "actions": [
        {
          "action_name": "build_addon",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["<(PRODUCT_DIR)/flashattn.node"],
          "action": ["node", "scripts/build-addon.mjs"],
        },
      ],
    },
  ],
}
